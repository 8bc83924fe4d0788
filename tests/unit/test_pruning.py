import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import remove_hook_from_submodules
from families import SEQUENCES, built, llava
from holdfast.architectures import decoder_linears, part_linears
from holdfast.compression import masks
from holdfast.compression.masks import Rule, magnitude_mask, wanda_mask
from holdfast.compression.pruning import prune
from holdfast.errors import HoldfastError
from oracles import magnitude, wanda
from oracles import sparsegpt as sparsegpt_oracle

HALF = {"sparsity": 0.5}
GROUPS: list[dict[str, Any]] = [
    {"sparsity": 0.1, "compare": "row"},
    {"sparsity": 0.73, "compare": "row"},
    {"sparsity": 0.1, "compare": "layer"},
    {"sparsity": 0.73, "compare": "layer"},
    {"sparsity": 0.001, "compare": "layer"},
    {"pattern": (2, 4)},
    {"pattern": (4, 8)},
    {"pattern": (1, 4)},
    {"pattern": (3, 4)},
]


def rule(*, sparsity: float = 0, pattern: tuple[int, int] | None = None, compare: str = "row") -> Rule:
    return Rule(sparsity, pattern, compare)


# ---- masks


@pytest.mark.parametrize("chunk", [40, 1 << 18])
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_masks_equal_the_oracles_ties_and_dead_inputs_included(
    group: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "CHUNK", chunk)
    draw = torch.Generator().manual_seed(3)
    weight = torch.randint(-3, 4, (9, 32), generator=draw).float()
    norms = torch.rand(32, generator=draw).double()
    norms[[2, 7]] = 0
    norms[20:25] = 0.5
    assert torch.equal(magnitude_mask(weight, rule(**group)), magnitude.mask(weight, **group))
    assert torch.equal(wanda_mask(weight, norms, rule(**group)), wanda.mask(weight, norms.tolist(), **group))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_masks_are_exact_in_every_dtype(dtype: torch.dtype) -> None:
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    norms = torch.rand(64, generator=torch.Generator().manual_seed(2)).double()
    for group in GROUPS:
        assert torch.equal(magnitude_mask(weight, rule(**group)), magnitude.mask(weight, **group))
        expected = wanda.mask(weight, norms.tolist(), **group)
        assert torch.equal(wanda_mask(weight, norms, rule(**group)), expected)


def test_comparison_groups_are_what_they_say() -> None:
    # Row 0 is tiny throughout: compared over the matrix it goes as a whole.
    weight = torch.tensor([[0.1, 0.2, 0.3, 0.4], [10.0, 20.0, 30.0, 40.0]])
    norms = torch.tensor([8.0, 1.0, 1.0, 1.0])
    by_row = torch.tensor([[False, True, True, False]] * 2)
    assert torch.equal(wanda_mask(weight, norms, rule(sparsity=0.5)), by_row)
    whole = torch.tensor([[True] * 4, [False] * 4])
    assert torch.equal(wanda_mask(weight, norms, rule(sparsity=0.5, compare="layer")), whole)
    assert torch.equal(magnitude_mask(weight, rule(sparsity=0.5, compare="layer")), whole)
    assert magnitude_mask(torch.ones(7, 9), rule(sparsity=0.37, compare="layer")).sum() == int(63 * 0.37)


def test_rules_default_to_the_papers_comparison_groups() -> None:
    assert Rule.of({"prune": "magnitude", **HALF}) == Rule(0.5, None, "layer")
    assert Rule.of({"prune": "wanda", "compare": None, **HALF}) == Rule(0.5, None, "row")
    assert Rule.of({"prune": "wanda", "compare": "layer", **HALF}) == Rule(0.5, None, "layer")
    assert Rule.of({"prune": "sparsegpt", "pattern": "4:8", "sparsity": None}).pattern == (4, 8)


# ---- whole models


@pytest.mark.parametrize(
    ("family", "blocks", "options"),
    [
        ("Llama", "model.layers", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        # Its layers differ in their attention masks: every second one sees four tokens only.
        ("Gemma2", "model.layers", {"sliding_window": 4, "head_dim": 8, "num_key_value_heads": 2}),
        ("Gemma3Text", "model.layers", {"sliding_window": 4, "head_dim": 8, "num_key_value_heads": 2}),
        ("GPTNeoX", "gpt_neox.layers", {}),
        ("Falcon", "transformer.h", {}),
        ("Bloom", "transformer.h", {"n_layer": 3, "n_head": 4}),
    ],
)
@pytest.mark.parametrize(
    ("recipe", "oracle", "group"),
    [
        ({"prune": "wanda", "sparsity": 0.5}, wanda.pruned, {"sparsity": 0.5}),
        ({"prune": "wanda", "pattern": "2:4"}, wanda.pruned, {"pattern": (2, 4)}),
        (
            {"prune": "wanda", "sparsity": 0.5, "compare": "layer"},
            wanda.pruned,
            {"sparsity": 0.5, "compare": "layer"},
        ),
        ({"prune": "sparsegpt", "sparsity": 0.5}, sparsegpt_oracle.prune, {"sparsity": 0.5}),
    ],
    ids=["wanda", "wanda-2of4", "wanda-layer", "sparsegpt"],
)
def test_models_pruned_layer_by_layer_equal_the_oracle(
    family: str,
    blocks: str,
    options: dict[str, object],
    recipe: dict[str, Any],
    oracle: Callable[..., torch.Tensor],
    group: dict[str, Any],
) -> None:
    ours = built(family, **options)
    naive = copy.deepcopy(ours)
    weights = wanda.prune(naive, blocks, SEQUENCES, oracle, **group)
    prune(ours, recipe, SEQUENCES)
    found = decoder_linears(ours)
    assert found.keys() == weights.keys()
    for name, linear in found.items():
        assert torch.equal(linear.weight == 0, weights[name] == 0), name
        torch.testing.assert_close(linear.weight.double(), weights[name], atol=1e-4, rtol=1e-3)


def test_inputs_come_from_the_pruned_layers_before() -> None:
    dense, ours = built("Llama"), built("Llama")
    prune(ours, {"prune": "wanda", **HALF}, SEQUENCES)
    name = "model.layers.2.mlp.up_proj"
    seen: list[torch.Tensor] = []
    handle = dense.get_submodule(name).register_forward_hook(lambda _m, args, _o: seen.append(args[0][0]))
    for ids in SEQUENCES:
        dense(ids)
    handle.remove()
    weight: Any = dense.get_submodule(name).weight
    unpropagated = wanda_mask(weight, torch.cat(seen).double().norm(dim=0), rule(**HALF))
    assert (unpropagated != (decoder_linears(ours)[name].weight == 0)).float().mean() > 0.005


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("amount", [HALF, {"pattern": "2:4"}], ids=str)
def test_only_the_named_linears_change(method: str, amount: dict[str, Any]) -> None:
    model = built("Llama", num_key_value_heads=2, tie_word_embeddings=True)
    before = copy.deepcopy(dict(model.named_parameters()))
    prune(model, {"prune": method, **amount}, SEQUENCES)
    linears = decoder_linears(model)
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") in linears:
            assert int((parameter == 0).sum()) == parameter.numel() // 2
            if "pattern" in amount:
                assert ((parameter == 0).view(-1, 4).sum(dim=1) == 2).all()
            if method != "sparsegpt":
                kept = parameter != 0
                assert torch.equal(parameter[kept], before[name][kept])
        else:
            assert torch.equal(parameter, before[name])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all("forward" not in m.__dict__ and not m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_weights_that_accelerate_keeps_in_main_memory_are_pruned_there(method: str) -> None:
    plain, offloaded = built("Llama"), built("Llama")
    prune(plain, {"prune": method, **HALF}, SEQUENCES)
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    assert next(iter(decoder_linears(offloaded).values())).weight.is_meta
    prune(offloaded, {"prune": method, **HALF}, SEQUENCES)
    remove_hook_from_submodules(offloaded)
    for (name, expected), found in zip(plain.named_parameters(), offloaded.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_weights_that_accelerate_keeps_on_disk_are_refused(tmp_path: Path) -> None:
    model = built("Llama")
    disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    with pytest.raises(HoldfastError, match="offloaded to disk") as error:
        prune(model, {"prune": "magnitude", **HALF}, [])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_width_that_the_pattern_does_not_fit_is_refused_before_anything_is_pruned(method: str) -> None:
    model = built("Llama", intermediate_size=49)
    before = copy.deepcopy(dict(model.named_parameters()))
    with pytest.raises(HoldfastError, match=r"2:4 .* width 49 of model\.layers\.0\.mlp\.down_proj") as error:
        prune(model, {"prune": method, "pattern": "2:4"}, SEQUENCES)
    assert "\n" not in str(error.value)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


# ---- parts


def test_magnitude_prunes_the_parts_asked_for_and_no_other() -> None:
    model = llava()
    before = copy.deepcopy(dict(model.named_parameters()))
    parts = ["vision", "projector"]
    prune(model, {"prune": "magnitude", "sparsity": 0.25, "parts": parts}, [])
    linears = part_linears(model, parts)
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") in linears:
            assert int((parameter == 0).sum()) == parameter.numel() // 4
        else:
            assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_towers_are_not_calibrated_on_text(method: str) -> None:
    with torch.device("meta"):
        model = llava()
    with pytest.raises(HoldfastError, match="no calibration record has an image") as error:
        prune(model, {"prune": method, "parts": ["language", "projector"], **HALF}, SEQUENCES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["vision", "projector"])
def test_a_model_without_the_part_is_told_in_one_line(part: str) -> None:
    with pytest.raises(HoldfastError, match=f"no linear layers in a {part} part") as error:
        prune(built("Llama"), {"prune": "magnitude", "parts": ["language", part], **HALF}, [])
    assert "\n" not in str(error.value)
