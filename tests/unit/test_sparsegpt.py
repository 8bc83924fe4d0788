from typing import Any

import pytest
import torch
from holdfast.compression import sparsegpt
from holdfast.compression.masks import Rule
from holdfast.compression.pruning import InputNorms
from holdfast.compression.sparsegpt import Hessian
from holdfast.errors import HoldfastError
from oracles import magnitude, wanda
from oracles import sparsegpt as sparsegpt_oracle


def correlated(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    """Inputs with a few strong directions, as activations have them, one outlier and one dead feature."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width // 8, generator=draw) @ torch.randn(width // 8, width, generator=draw)
    x += 0.3 * torch.randn(tokens, width, generator=draw)
    x[:, 3] *= 50
    x[:, 9] = 0
    return x


def sparsegpt_pruned(weight: torch.Tensor, inputs: torch.Tensor, **group: Any) -> torch.Tensor:
    hessian = Hessian(weight.shape[1], weight.device)
    for part in inputs.split(100):
        hessian.add(part)
    pruned = weight.clone()
    sparsegpt.prune(pruned, hessian, Rule(group.get("sparsity", 0), group.get("pattern"), "row"), "linear")
    return pruned


def output_error(pruned: torch.Tensor, weight: torch.Tensor, inputs: torch.Tensor) -> float:
    expected = inputs.double() @ weight.double().T
    return float((inputs.double() @ pruned.double().T - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("width", "group"),
    [
        (200, {"sparsity": 0.5}),
        (128, {"sparsity": 0.73}),
        (96, {"pattern": (2, 4)}),
        (144, {"pattern": (4, 8)}),
        (60, {"pattern": (1, 3)}),
        (130, {"pattern": (3, 5)}),
    ],
    ids=str,
)
def test_sparsegpt_equals_the_oracle_and_errs_less_than_wanda_and_magnitude(
    width: int, group: dict[str, Any]
) -> None:
    inputs = correlated(500, width)
    weight = torch.randn(24, width, generator=torch.Generator().manual_seed(1))
    found = sparsegpt_pruned(weight, inputs, **group)
    expected = sparsegpt_oracle.prune(weight, inputs, **group)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)
    error = output_error(found, weight, inputs)
    assert error == pytest.approx(output_error(expected, weight, inputs), rel=0.01)
    rivals = (
        wanda.pruned(weight, inputs, **group),
        weight.double().masked_fill(magnitude.mask(weight, **group), 0),
    )
    assert all(error < 0.9 * output_error(rival, weight, inputs) for rival in rivals)


def test_sparsegpt_prunes_exact_counts_and_keeps_patterns() -> None:
    inputs = correlated(300, 200)
    inputs[:, 9] = 1
    weight = torch.randn(7, 200, generator=torch.Generator().manual_seed(1))
    zeros = sparsegpt_pruned(weight, inputs, sparsity=0.37) == 0
    assert [int(part.sum()) for part in zeros.split(128, dim=1)] == [int(7 * 128 * 0.37), int(7 * 72 * 0.37)]
    for kept, of in ((2, 4), (4, 8), (1, 4), (3, 4)):
        zeros = sparsegpt_pruned(weight, inputs, pattern=(kept, of)) == 0
        assert (zeros.view(7, -1, of).sum(dim=2) == of - kept).all()


def test_sparsegpt_zeroes_weights_on_dead_inputs_and_works_without_any_input() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    assert (sparsegpt_pruned(weight, correlated(300, 64), sparsity=0.2)[:, 9] == 0).all()
    assert (sparsegpt_pruned(weight, torch.zeros(10, 64), sparsity=0.2) == 0).all()


def test_sparsegpt_rounds_to_the_weights_dtype_only_at_the_end() -> None:
    inputs = correlated(300, 64).bfloat16()
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = sparsegpt_pruned(weight.float(), inputs.float(), pattern=(2, 4))
    assert torch.equal(sparsegpt_pruned(weight, inputs, pattern=(2, 4)), expected.bfloat16())


def test_the_factor_is_that_of_the_dampened_hessian() -> None:
    x = correlated(400, 300)
    hessian = Hessian(300, x.device)
    hessian.add(x)
    R, found = hessian.factor("linear")
    H = x.double().T @ x.double()
    dead = H.diagonal() == 0
    damp = 0.01 * H.diagonal().mean()
    H.diagonal().add_(dead + damp)
    R = R.triu().double()
    torch.testing.assert_close(R @ R.T, H, rtol=1e-4, atol=1e-4 * float(H.diagonal().mean()))
    assert torch.equal(found, dead)


def test_a_hessian_that_cannot_be_factored_ends_in_one_line() -> None:
    hopeless = Hessian(2, torch.device("cpu"))
    hopeless._matrix[:] = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    with pytest.raises(HoldfastError, match=r"model\.layers\.0: .*cannot be factored") as error:
        hopeless.factor("model.layers.0")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_overflowing_inputs_are_refused(value: float) -> None:
    x = torch.ones(3, 8)
    x[1, 2] = value
    hessian, norms = Hessian(8, x.device), InputNorms(8, x.device)
    hessian.add(x)
    with pytest.raises(HoldfastError, match="overflow"):
        hessian.factor("linear")
    norms.add(x)
    if value == 1e30:  # float64 sums hold its square
        assert torch.isfinite(norms.norms("linear")).all()
    else:
        with pytest.raises(HoldfastError, match="overflow"):
            norms.norms("linear")
