"""bitsandbytes' formats, parts of vision-language models, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.architectures import (
    decoder_linears,
    language_model,
    module_name,
    part_linears,
)
from holdfast.checkpoints import load_model, save_model
from holdfast.compression import bits_and_bytes, llm_compressor
from holdfast.edited_checkpoints import read_weight
from holdfast.errors import HoldfastError
from oracles import int8
from quantized import (
    IDS,
    RECIPES,
    Compressed,
    Model,
    made_once,
    outlier_llama,
    random_model,
    sequences,
)
from safetensors.torch import load_file
from tiny import tiny_llava


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return outlier_llama(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def compressed(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compressed]:
    return made_once(dense, tmp_path_factory)


# ---- bitsandbytes


def test_llm_int8_keeps_outlier_features_in_16_bit(
    compressed: Callable[[str], Compressed], dense: Path
) -> None:
    model, quantized = load_model(dense), load_model(compressed("llm-int8").folder)
    name = "model.layers.0.self_attn.q_proj"
    weight = model.get_submodule(name).weight
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    x[:, [3, 40]] *= 60
    with torch.no_grad():
        found = quantized.get_submodule(name)(x[None])[0].double()
    exact = x.double() @ weight.double().T
    mixed, undivided = int8.llm_int8(weight, x), int8.llm_int8(weight, x, threshold=None)
    # Products of the outliers are added up in 16 bit: half of 2^-10 of the result.
    assert (found - mixed).norm() < 1e-3 * mixed.norm()
    only_weights = x.double() @ int8.rounded_rows(weight).T
    assert (found - only_weights).norm() < 0.1 * (undivided - only_weights).norm()
    assert (found - exact).norm() < 0.6 * (undivided - exact).norm()


def test_llm_int8_weights_are_rounded_by_row(compressed: Callable[[str], Compressed], dense: Path) -> None:
    folder = compressed("llm-int8").folder
    for name, linear in decoder_linears(load_model(dense)).items():
        weight = linear.weight.half().double()  # what bitsandbytes starts from
        level = weight.abs().amax(dim=1, keepdim=True) / 127
        assert ((read_weight(folder, f"{name}.weight") - weight).abs() <= 0.51 * level).all(), name
    stored = load_file(compressed("llm-int8").folder / "model.safetensors")
    assert stored["model.layers.0.mlp.up_proj.weight"].dtype == torch.int8


def test_nf4_weights_are_the_nearest_levels(compressed: Callable[[str], Compressed], dense: Path) -> None:
    levels = int8.nf4_levels()
    assert levels[[0, 7, 15]].tolist() == [-1, 0, 1]
    folder = compressed("nf4").folder
    quantized = decoder_linears(load_model(folder))
    for name, linear in decoder_linears(load_model(dense)).items():
        found = read_weight(folder, f"{name}.weight")
        assert torch.allclose(found.double(), int8.nf4(linear.weight), atol=1e-6), name
        # The same on every CPU: no bf16 where the model is float32, and no repacking in the first pass.
        x = torch.randn(1, 5, linear.in_features)
        for _ in range(2):
            assert torch.allclose(quantized[name](x), x @ found.T, atol=1e-5), name
    assert all(m.compute_dtype == torch.float32 for m in quantized.values())


@pytest.mark.parametrize("method", ["llm-int8", "nf4"])
def test_bitsandbytes_refuses_a_checkpoint_with_nan(dense: Path, tmp_path: Path, method: str) -> None:
    model = load_model(dense)
    model.get_submodule("model.layers.1.mlp.up_proj").weight.data[3, 3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(HoldfastError, match=r"layers\.1\.mlp\.up_proj.weight holds NaN") as raised:
        bits_and_bytes.load_quantized(tmp_path, {"quantize": method})
    assert "\n" not in str(raised.value)


# ---- vision-language models


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("vlm"))


@torch.no_grad()
def seen_logits(model: Model) -> torch.Tensor:
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.cat([torch.full((1, 4), 399), IDS[:, :20]], dim=1)
    return model(input_ids=ids, pixel_values=image).logits


@pytest.mark.parametrize("method", ["rtn-4", "fp8", "llm-int8", "nf4"])
@pytest.mark.parametrize("parts", [["vision"], ["projector"], ["language", "vision", "projector"]])
def test_uncalibrated_methods_quantize_the_parts_asked_for(
    vlm: Path, tmp_path: Path, method: str, parts: list[Any]
) -> None:
    recipe = RECIPES[method] | {"parts": parts}
    if method in bits_and_bytes.QUANTIZED:
        model = bits_and_bytes.load_quantized(vlm, recipe)
        kind = bits_and_bytes.QUANTIZED[method]
        found = {n for n, m in model.named_modules() if type(getattr(m, "weight", None)).__name__ == kind}
        save_model(model, None, tmp_path)
        before = seen_logits(model)
    else:
        model = load_model(vlm)
        llm_compressor.quantize(model, recipe, [])
        found = {n for n, m in model.named_modules() if getattr(m, "quantization_scheme", None)}
        before = seen_logits(model)
        llm_compressor.save(model, tmp_path)
    assert found == set(part_linears(load_model(vlm), parts))
    loaded = seen_logits(load_model(tmp_path))
    assert (loaded - before).norm() <= 1e-5 * before.norm()
    assert (loaded - seen_logits(load_model(vlm))).norm() > 1e-4 * before.norm()


@pytest.mark.parametrize("method", ["gptq", "awq", "smoothquant", "fp8-static"])
def test_calibrated_methods_leave_a_vision_tower_as_it_is(vlm: Path, tmp_path: Path, method: str) -> None:
    model, before = load_model(vlm), load_model(vlm)
    llm_compressor.quantize(model, RECIPES[method], sequences())
    language = module_name(model, language_model(model))
    for name, parameter in before.named_parameters():
        if not name.startswith(language):
            assert torch.equal(model.get_parameter(name), parameter), name
    in_memory = seen_logits(model)
    llm_compressor.save(model, tmp_path)
    assert (seen_logits(load_model(tmp_path)) - in_memory).norm() <= 1e-5 * in_memory.norm()


# ---- what cannot be done


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_blocks_without_a_mapping_are_never_silently_rounded(tmp_path: Path, method: str) -> None:
    model = random_model(tmp_path, "GPTNeoX")
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(HoldfastError, match=r"knows no (AWQ|SmoothQuant) mapping") as raised:
        llm_compressor.quantize(model, {"quantize": method, "bits": 4, "group_size": 16}, sequences()[:2])
    assert "\n" not in str(raised.value)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


def test_a_library_that_skips_awqs_scales_is_caught(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "llmcompressor.modifiers.transform.awq.AWQModifier._apply_smoothing",
        lambda modifier, _model: modifier._smooth_activation_stats.clear(),
    )
    with pytest.raises(HoldfastError, match=r"AWQ skipped model\.layers\.0\.input_layernorm"):
        llm_compressor.quantize(load_model(dense), RECIPES["awq"], sequences()[:2])


def test_a_library_that_smooths_by_one_is_caught(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "llmcompressor.modifiers.transform.smoothquant.SmoothQuantModifier._calculate_smoothing_scales",
        lambda _modifier, _layers, spread: torch.ones_like(spread),
    )
    with pytest.raises(HoldfastError, match="SmoothQuant scaled nothing"):
        llm_compressor.quantize(load_model(dense), RECIPES["smoothquant"], sequences()[:2])


GEMMA = {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 16}


def test_mappings_that_would_change_the_model_are_refused(tmp_path: Path) -> None:
    # llm-compressor lists Gemma 2 under Llama's SmoothQuant mappings, but the norm after its attention does not
    # feed the MLP.
    model = random_model(tmp_path, "Gemma2", **GEMMA)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(HoldfastError, match="SmoothQuant's mappings in llm-compressor do not fit"):
        llm_compressor.quantize(model, {"quantize": "smoothquant"}, sequences()[:2])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


def test_awq_smooths_norms_that_add_one_to_their_weight(tmp_path: Path) -> None:
    model = random_model(tmp_path, "Gemma2", **GEMMA)
    before = model.model.layers[0].input_layernorm.weight.clone()
    llm_compressor.quantize(model, {"quantize": "awq", "bits": 4, "group_size": 16}, sequences()[:2])
    assert not torch.equal(model.model.layers[0].input_layernorm.weight, before)


@pytest.mark.parametrize("name", ["gptq", "awq", "smoothquant"])
def test_a_model_that_overflows_is_refused(dense: Path, name: str) -> None:
    model = load_model(dense)
    model.model.layers[0].self_attn.o_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(HoldfastError, match=r"NaN or infinite|cannot be inverted") as raised:
        llm_compressor.quantize(model, RECIPES[name], sequences())
    assert "\n" not in str(raised.value)


def test_nothing_not_finite_is_saved(dense: Path, tmp_path: Path) -> None:
    model = load_model(dense)
    model.model.layers[0].self_attn.o_proj.weight.data[0, 0] = float("nan")
    llm_compressor.quantize(model, RECIPES["rtn-4"], [])
    with pytest.raises(HoldfastError, match="NaN"):
        llm_compressor.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_group_size_that_does_not_fit_names_the_module_and_those_that_do(dense: Path) -> None:
    with pytest.raises(
        HoldfastError, match=r"width 64 of model\.layers\.0\.self_attn\.q_proj.*16 or 32 or 64"
    ):
        llm_compressor.quantize(load_model(dense), {"quantize": "rtn", "bits": 4, "group_size": 128}, [])


@pytest.mark.parametrize("recipe", [RECIPES[n] for n in ("gptq", "awq", "smoothquant", "fp8-static")])
def test_methods_calibrated_on_text_leave_vision_alone(dense: Path, recipe: dict[str, Any]) -> None:
    with pytest.raises(HoldfastError, match=r"(does not reach|on) the projector and vision") as raised:
        llm_compressor.quantize(load_model(dense), recipe | {"parts": ["vision", "projector"]}, sequences())
    assert "\n" not in str(raised.value)


def test_quantizing_prints_nothing(dense: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_model(dense)
    llm_compressor.quantize(model, RECIPES["awq"], sequences()[:2])
    llm_compressor.save(model, tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    # Progress bars are redrawn on one line; a warning is not.
    assert not [
        line for line in err.replace("\r", "\n").splitlines() if line.strip("\x1b[A ") and "it" not in line
    ]
