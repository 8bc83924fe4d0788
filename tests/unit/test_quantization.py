"""llm-compressor's and bitsandbytes' methods against the papers' formulas in float64 (tests/oracles)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from holdfast.architectures import (
    decoder_layers,
    decoder_linears,
)
from holdfast.checkpoints import load_model
from oracles import awq, gptq, int8
from quantized import (
    GROUP,
    RECIPES,
    Compressed,
    error,
    inputs,
    logits,
    made_once,
    outlier_llama,
)
from safetensors.torch import load_file

SMOOTHED = {
    "model.layers.0.input_layernorm": ["q_proj", "k_proj", "v_proj"],
    "model.layers.0.post_attention_layernorm": ["gate_proj", "up_proj"],
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return outlier_llama(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def compressed(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compressed]:
    return made_once(dense, tmp_path_factory)


# ---- every method


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_model_gives_the_logits_it_had_in_memory(
    compressed: Callable[[str], Compressed], dense: Path, name: str
) -> None:
    made = compressed(name)
    loaded, before = logits(load_model(made.folder)), logits(load_model(dense))
    # Float32 throughout and the same kernels: what is left is rounding in another order of operations.
    assert (loaded - made.logits).norm() <= 1e-5 * made.logits.norm()
    assert 0.001 < (made.logits - before).norm() / before.norm() < 1.2
    for file in made.folder.glob("*.safetensors"):
        for key, value in load_file(file).items():
            assert not value.is_floating_point() or value.float().isfinite().all(), key


@pytest.mark.parametrize("name", RECIPES)
def test_embeddings_head_and_norms_stay(
    compressed: Callable[[str], Compressed], dense: Path, name: str
) -> None:
    loaded, before = load_model(compressed(name).folder), dict(load_model(dense).named_parameters())
    stay = [n for n in before if n.removesuffix(".weight") not in decoder_linears(load_model(dense))]
    for parameter in stay:
        if name in ("awq", "smoothquant") and "layers." in parameter:
            continue  # the norms of the blocks carry the scales
        assert torch.equal(loaded.get_parameter(parameter), before[parameter]), parameter
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize(("name", "levels"), [("rtn-8", 256), ("rtn-4", 16), ("rtn-3", 8), ("gptq", 8)])
def test_weights_lie_on_the_grid_of_their_bits(
    compressed: Callable[[str], Compressed], name: str, levels: int
) -> None:
    for linear in decoder_linears(load_model(compressed(name).folder)).values():
        assert max(len(group.unique()) for group in linear.weight.reshape(-1, GROUP)) <= levels


@pytest.mark.parametrize("name", ["rtn-8", "rtn-4", "rtn-3", "rtn-channel"])
def test_round_to_nearest_equals_the_oracle(
    compressed: Callable[[str], Compressed], dense: Path, name: str
) -> None:
    loaded, recipe = load_model(compressed(name).folder), RECIPES[name]
    for linear_name, linear in decoder_linears(load_model(dense)).items():
        group = linear.in_features if recipe["group_size"] == "channel" else GROUP
        expected = gptq.round_to_nearest(linear.weight, recipe["bits"], group)
        found = loaded.get_submodule(linear_name).weight.double()
        other = ~torch.isclose(found, expected, rtol=1e-5, atol=1e-7)
        # The largest weight of a group lies exactly between two levels: float32 may round it to either.
        groups = linear.weight.abs().unflatten(1, (-1, group))
        largest = (groups == groups.amax(dim=2, keepdim=True)).flatten(1)
        assert not (other & ~largest).any(), linear_name
        gap = ((found - linear.weight).abs() - (expected - linear.weight).abs()).abs()
        assert (gap < 1e-5).all(), linear_name


# ---- GPTQ


@pytest.mark.parametrize("name", ["gptq", "gptq-channel"])
def test_gptq_errs_as_the_oracle_and_less_than_rounding(
    compressed: Callable[[str], Compressed], dense: Path, name: str
) -> None:
    made, bits = compressed(name), RECIPES[name]["bits"]
    model = load_model(dense)
    for number in range(len(decoder_layers(model))):
        names = [n for n in made.weights if f"layers.{number}." in n]
        # Blocks before this one are quantized already, this one and those after it are not.
        seen = inputs(model, names)
        for linear_name in names:
            linear = model.get_submodule(linear_name)
            group = linear.in_features if "channel" in name else GROUP
            oracle = gptq.quantize(linear.weight, seen[linear_name], bits, group)
            rounded = gptq.round_to_nearest(linear.weight, bits, group)
            ours, naive, nearest = (
                error(linear.weight, q, seen[linear_name])
                for q in (made.weights[linear_name], oracle, rounded)
            )
            assert ours <= 1.01 * naive, linear_name
            assert ours < 0.9 * nearest, linear_name
            # The same weights, but for rows in which float32 rounds a tie the other way: they go on differently.
            same = (made.weights[linear_name].double() - oracle).abs() < 1e-5
            assert same.all(dim=1).double().mean() > 0.9, linear_name
        for linear_name in names:
            model.get_submodule(linear_name).weight.data = made.weights[linear_name]


def test_gptq_sees_what_quantized_blocks_give(compressed: Callable[[str], Compressed], dense: Path) -> None:
    model, name = load_model(dense), "model.layers.1.mlp.gate_proj"
    linear = model.get_submodule(name)
    unpropagated = gptq.quantize(linear.weight, inputs(model, [name])[name], 3, GROUP)
    found = compressed("gptq").weights[name].double()
    assert (found - unpropagated).abs().gt(1e-5).double().mean() > 0.05


# ---- AWQ


def awq_scales(made: Compressed, dense: Path, norm: str) -> torch.Tensor:
    """By what AWQ divided the norm's weight and multiplied the columns of the linears after it."""
    before, after = (m.get_submodule(norm).weight for m in (load_model(dense), load_model(made.folder)))
    return before / after


def test_awq_errs_less_than_rounding_on_outlier_channels(
    compressed: Callable[[str], Compressed], dense: Path
) -> None:
    made, model = compressed("awq"), load_model(dense)
    loaded = load_model(made.folder)
    last = "model.layers.0.mlp.down_proj"
    down = (made.weights[last] / model.get_submodule(last).weight).median(dim=0).values
    for norm, children in SMOOTHED.items():
        s = awq_scales(made, dense, norm)
        names = [n for n in made.weights if "layers.0." in n and n.endswith(tuple(children))]
        seen = inputs(model, names)
        ours = nearest = 0.0
        for name in names:
            weight, quantized = model.get_submodule(name).weight, loaded.get_submodule(name).weight / s
            if name.endswith(
                "up_proj"
            ):  # its outputs are scaled in their turn, as inputs of the down projection
                quantized = quantized * down[:, None]
            ours += error(weight, quantized, seen[name])
            nearest += error(weight, awq.round_to_nearest(weight, 4, GROUP), seen[name])
        assert ours < 0.7 * nearest, norm


def test_awq_finds_the_oracles_scales(compressed: Callable[[str], Compressed], dense: Path) -> None:
    # The down projection is searched by its own output, so that the formula (AutoAWQ's form of it) holds to the letter.
    made, model = compressed("awq"), load_model(dense)
    name = "model.layers.0.mlp.down_proj"
    weight, x = model.get_submodule(name).weight, inputs(model, [name])[name]
    found = (made.weights[name] / weight).median(dim=0).values.double()
    expected = awq.scales(weight, x, 4, GROUP)
    assert torch.allclose(found, expected, rtol=1e-3)
    assert awq.output_error(weight, x, found, 4, GROUP) < awq.output_error(
        weight, x, torch.ones_like(found), 4, GROUP
    )
    stored = load_model(made.folder).get_submodule(name).weight
    assert torch.allclose(stored.double(), awq.round_to_nearest(weight * found, 4, GROUP), atol=1e-5)


# ---- SmoothQuant


def test_smoothing_preserves_the_function(compressed: Callable[[str], Compressed], dense: Path) -> None:
    made, model = compressed("smoothquant"), load_model(dense)
    before = logits(model)
    smoothed = load_model(made.folder)
    for name, weight in made.weights.items():
        model.get_submodule(name).weight.data = weight
    for name, module in model.named_modules():
        if name.endswith("layernorm"):
            module.weight.data = smoothed.get_submodule(name).weight.data
    assert (logits(model) - before).norm() < 1e-4 * before.norm()


def test_smoothquants_scales_are_those_of_the_formula_with_half_ranges(
    compressed: Callable[[str], Compressed], dense: Path
) -> None:
    made, model = compressed("smoothquant"), load_model(dense)
    for norm, children in SMOOTHED.items():
        names = [n for n in made.weights if "layers.0." in n and n.endswith(tuple(children))]
        weights = [model.get_submodule(n).weight for n in names]
        expected = awq.smoothquant_scales(weights, inputs(model, names)[names[0]])
        assert torch.allclose(awq_scales(made, dense, norm).double(), expected, rtol=1e-4), norm


def test_smoothquant_errs_less_than_plain_w8a8_on_outliers(
    compressed: Callable[[str], Compressed], dense: Path
) -> None:
    made, model = compressed("smoothquant"), load_model(dense)
    loaded = load_model(made.folder)
    for norm, children in SMOOTHED.items():
        s = awq_scales(made, dense, norm)
        for name in (n for n in made.weights if "layers.0." in n and n.endswith(tuple(children))):
            weight, x = model.get_submodule(name).weight.double(), inputs(model, [name])[name].double()
            expected = x @ weight.T
            plain = int8.rounded_rows(x) @ int8.rounded_rows(weight).T
            with torch.no_grad():
                ours = loaded.get_submodule(name)((x / s).float()).double()
            assert (ours - expected).norm() < 0.8 * (plain - expected).norm(), name


# ---- fp8


@pytest.mark.parametrize("name", ["fp8", "fp8-static"])
def test_fp8_weights_are_within_half_a_step(
    compressed: Callable[[str], Compressed], dense: Path, name: str
) -> None:
    stored, model = load_file(compressed(name).folder / "model.safetensors"), load_model(dense)
    for linear_name, linear in decoder_linears(model).items():
        weight, scale = stored[f"{linear_name}.weight"], stored[f"{linear_name}.weight_scale"].double()
        assert weight.dtype == torch.float8_e4m3fn
        largest = (
            linear.weight.abs().amax() if "static" in name else linear.weight.abs().amax(1, keepdim=True)
        )
        assert torch.allclose(scale, largest.double() / 448, rtol=1e-5)
        wanted = linear.weight.double() / scale
        # E4M3 has 3 bits of mantissa and its smallest normal number is 2^-6.
        step = torch.exp2(wanted.abs().log2().floor().clamp(min=-6) - 3)
        assert ((weight.double() - wanted).abs() <= step / 2 + 1e-6).all(), linear_name


def test_static_activation_scales_come_from_all_calibration_tokens(
    compressed: Callable[[str], Compressed], dense: Path
) -> None:
    stored, model = load_file(compressed("fp8-static").folder / "model.safetensors"), load_model(dense)
    for name, x in inputs(model, list(decoder_linears(model))).items():
        assert stored[f"{name}.input_scale"].item() == pytest.approx(x.abs().max().item() / 448, rel=1e-4)
