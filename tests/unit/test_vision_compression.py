"""Compression of vision-language models calibrated on images: each method beside brute force, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from holdfast.architectures import decoder_layers, layer_linears, module_name, part_linears, vision_layers
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.compression import compress, llm_compressor
from holdfast.compression.calibration import Sample, sequences, token_ids, with_images
from holdfast.compression.masks import Rule, wanda_mask
from holdfast.compression.pruning import prune
from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import Transformers
from holdfast.evaluation.shown import Chat
from holdfast.prompts.images import read_instructions
from holdfast.prompts.templates import forward_inputs
from oracles import sparsegpt as sparsegpt_oracle
from quantized import RECIPES
from tiny import tiny_llama
from torch import Tensor
from transformers import BatchEncoding
from vlms import FAMILIES, records, tiny_vlm

DRAW = {"samples": 6, "tokens": 40, "seed": 0}
WANDA = {"prune": "wanda", "sparsity": 0.5}


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm("llava", tmp_path_factory.mktemp("llava") / "model")


def drawn(model: Path, folder: Path, **options: Any) -> list[Sample]:
    return sequences(records(folder, "calibration", 6, **options), load_tokenizer(model), {}, **DRAW)


@torch.no_grad()
def inputs_of(model: Any, linears: dict[str, Any], samples: list[Sample]) -> dict[str, Tensor]:
    """Inputs of the linears in whole forward passes, [token, d_in]."""
    found: dict[str, list[Tensor]] = {name: [] for name in linears}

    def adding(name: str) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
            found[name].append(args[0].reshape(-1, args[0].shape[-1]))

        return hook

    handles = [linear.register_forward_pre_hook(adding(name)) for name, linear in linears.items()]
    for sample in samples:
        if isinstance(sample, Tensor):
            model(input_ids=sample)
        else:
            model(**forward_inputs(model, BatchEncoding(sample)))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(inputs) for name, inputs in found.items()}


def by_wanda(weight: Tensor, inputs: Tensor) -> Tensor:
    norms = inputs.double().square().sum(0).sqrt()
    return weight.masked_fill(wanda_mask(weight, norms, Rule.of(WANDA)), 0)


def by_sparsegpt(weight: Tensor, inputs: Tensor) -> Tensor:
    return sparsegpt_oracle.prune(weight, inputs, sparsity=0.3).to(weight.dtype)


def brute_force(
    model: Any, samples: list[Sample], parts: list[Any], pruned: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Each block's inputs from the model as it is by then, run from the image and the first token every time."""
    wanted, names = part_linears(model, parts), {id(m): n for n, m in model.named_modules()}
    seen = [s for s in samples if isinstance(s, dict)]
    groups: list[tuple[dict[str, Any], list[Sample]]] = []
    for layers, of in ((vision_layers(model), seen), (decoder_layers(model), samples)):
        if layers is not decoder_layers(model) and of is samples:
            rest = {n: m for n, m in wanted.items() if not any(n in g for g, _ in groups)}
            inside = {id(m) for layer in decoder_layers(model) for m in layer.modules()}
            groups += [({n: m}, list(seen)) for n, m in rest.items() if id(m) not in inside]
        for layer in layers:
            group = {f"{names[id(layer)]}.{n}": m for n, m in layer_linears(layer).items()}
            groups.append(({n: m for n, m in group.items() if n in wanted}, list(of)))
    for group, of in groups:
        for name, inputs in inputs_of(model, group, of).items() if group else ():
            weight = group[name].weight.data
            weight.copy_(pruned(weight, inputs))


def parts_of(vlm: Path, *parts: str) -> list[Any]:
    """Those that the family has linears in: Gemma 3's projector is a matrix by itself."""
    return [part for part in parts if part != "projector" or "gemma3" not in str(vlm)]


@pytest.mark.parametrize("beside", [(), ("vision", "projector")])
def test_wanda_on_images_is_brute_force(vlm: Path, tmp_path: Path, beside: tuple[str, ...]) -> None:
    samples, parts = drawn(vlm, tmp_path), parts_of(vlm, "language", *beside)
    assert with_images(samples) == 4
    ours, brute, dense = (load_model(vlm) for _ in range(3))
    prune(ours, {**WANDA, "parts": parts}, samples)
    brute_force(brute, samples, parts, by_wanda)
    linears = part_linears(ours, parts)
    for name, parameter in ours.named_parameters():
        zeros, expected = parameter == 0, brute.get_parameter(name) == 0
        if name.removesuffix(".weight") in linears:
            assert (zeros != expected).sum() <= 2, name  # scores that are equal but for the order of sums
            assert zeros.float().mean() == pytest.approx(0.5, abs=0.02), name
        else:
            assert torch.equal(parameter, dense.get_parameter(name)), name


def test_images_among_the_calibration_change_what_is_pruned(vlm: Path, tmp_path: Path) -> None:
    with_them, without = drawn(vlm, tmp_path / "a"), drawn(vlm, tmp_path / "b", images=False)
    assert [
        token_ids(s).shape[1] > token_ids(t).shape[1] for s, t in zip(with_them, without, strict=True)
    ].count(True) >= 4
    models = [load_model(vlm) for _ in range(2)]
    for model, samples in zip(models, (with_them, without), strict=True):
        prune(model, WANDA, samples)
    linears = part_linears(models[0], ["language"])
    assert any(
        not torch.equal(models[0].get_submodule(n).weight, models[1].get_submodule(n).weight) for n in linears
    )


@pytest.mark.parametrize("named", [("language",), ("language", "vision", "projector")])
def test_sparsegpt_on_images_is_brute_force(vlm: Path, tmp_path: Path, named: tuple[str, ...]) -> None:
    """The oracle, in float64, on the inputs of whole forward passes."""
    samples, parts = drawn(vlm, tmp_path), parts_of(vlm, *named)
    ours, brute = load_model(vlm), load_model(vlm)
    prune(ours, {"prune": "sparsegpt", "sparsity": 0.3, "parts": parts}, samples)
    brute_force(brute, samples, parts, by_sparsegpt)
    for name, linear in part_linears(ours, parts).items():
        found, expected = linear.weight, brute.get_submodule(name).weight
        assert ((found == 0) != (expected == 0)).sum() <= 2, name
        assert (found - expected).norm() < 1e-3 * expected.norm(), name
        assert (found == 0).float().mean() == pytest.approx(0.3, abs=0.02), name


def quantized(vlm: Path, folder: Path, name: str, samples: list[Sample], **more: Any) -> Any:
    model = load_model(vlm)
    llm_compressor.quantize(model, RECIPES[name] | more, samples)
    folder.mkdir()
    llm_compressor.save(model, folder)
    return load_model(folder)


@pytest.mark.parametrize("name", ["gptq", "awq", "smoothquant", "fp8-static"])
def test_language_models_are_quantized_on_images(vlm: Path, tmp_path: Path, name: str) -> None:
    if "gemma3" in str(vlm) and name == "smoothquant":
        pytest.skip("llm-compressor's SmoothQuant does not fit Gemma's blocks, with or without images")
    deep = "qwen3" in str(vlm)  # image features in several layers: all records or none have images
    samples = [s for s in drawn(vlm, tmp_path) if isinstance(s, dict) or not deep]
    found = quantized(vlm, tmp_path / "out", name, samples)
    dense = load_model(vlm)
    for other, parameter in dense.named_parameters():
        if other.removesuffix(".weight") not in part_linears(dense, ["language"]) and "norm" not in other:
            assert torch.equal(parameter, found.get_parameter(other)), other
    asked = read_instructions(tmp_path / "calibration.jsonl", vlm)[:2]
    tokenizer = load_tokenizer(vlm)
    assert [len(Transformers(m, Chat(tokenizer, {})).answer(asked, 4)) for m in (dense, found)] == [2, 2]
    if deep:
        with pytest.raises(HoldfastError, match="records with images and without"):
            llm_compressor.quantize(load_model(vlm), RECIPES[name], drawn(vlm, tmp_path / "mixed"))


@pytest.mark.parametrize("whole", [True, False])
def test_static_scales_are_the_largest_inputs(vlm: Path, tmp_path: Path, whole: bool) -> None:
    """Beside brute force: an input's largest magnitude over the records, and a weight's, are E4M3's 448.

    Of the language model alone it is calibrated on embeddings, and on records without images too (not Qwen3-VL).
    """
    all_have_images = whole or "qwen3" in str(vlm)
    samples = [s for s in drawn(vlm, tmp_path) if isinstance(s, dict) or not all_have_images]
    parts = parts_of(vlm, "language", *(("vision", "projector") if whole else ()))
    dense, largest = load_model(vlm), dict[str, Tensor]()
    for name, linear in part_linears(dense, parts).items():

        def seen(_module: Any, inputs: Any, name: str = name) -> None:
            largest[name] = torch.maximum(largest.get(name, torch.zeros(())), inputs[0].abs().max())

        linear.register_forward_pre_hook(seen)
    with torch.no_grad():
        for sample in samples:
            if isinstance(sample, dict):
                dense(**forward_inputs(dense, BatchEncoding(sample)))
            else:
                dense(input_ids=sample)
    found = quantized(vlm, tmp_path / "out", "fp8-static", samples, parts=parts)
    stored = found.state_dict()
    for name, linear in part_linears(dense, parts).items():
        scales = stored[f"{name}.input_scale"], stored[f"{name}.weight_scale"]
        expected = largest[name] / 448, linear.weight.abs().max() / 448
        assert [float(s) for s in scales] == pytest.approx([float(e) for e in expected], rel=1e-5), name
        assert not torch.equal(linear.weight, found.get_submodule(name).weight), name


def test_static_scales_of_towers_leave_the_language_model(llava: Path, tmp_path: Path) -> None:
    samples = [s for s in drawn(llava, tmp_path) if isinstance(s, dict)]
    found = quantized(llava, tmp_path / "out", "fp8-static", samples, parts=["vision", "projector"])
    dense = load_model(llava)
    for module, linear in part_linears(dense, ["language", "vision", "projector"]).items():
        same = torch.equal(linear.weight, found.get_submodule(module).weight)
        assert same == (module in part_linears(dense, ["language"])), module


@pytest.mark.parametrize("part", ["vision", "language"])
def test_a_linear_that_no_record_reaches(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A linear that is never called: dense in a tower, refused in a language model."""
    samples = [s for s in drawn(llava, tmp_path) if isinstance(s, dict)]
    model = load_model(llava)
    blocks = decoder_layers(model) if part == "language" else vision_layers(model)
    mlp = module_name(model, blocks[-1].mlp)
    monkeypatch.setattr(blocks[-1].mlp, "forward", MethodType(lambda _self, x: x, blocks[-1].mlp))
    recipe = RECIPES["fp8-static"] | {"parts": ["language", "vision"]}
    if part == "language":
        with pytest.raises(HoldfastError, match=rf"no calibration record reaches {mlp}\.\w+ \(3 modules\)"):
            llm_compressor.quantize(model, recipe, samples)
        return
    llm_compressor.quantize(model, recipe, samples)
    (tmp_path / "out").mkdir()
    llm_compressor.save(model, tmp_path / "out")
    found, dense = load_model(tmp_path / "out"), load_model(llava)
    for name, linear in part_linears(dense, ["language", "vision"]).items():
        same = torch.equal(linear.weight, found.get_submodule(name).weight)
        assert same == name.startswith(mlp), name


@pytest.mark.parametrize(
    ("recipe", "images", "told"),
    [
        ({**WANDA, "parts": ["vision"]}, False, "no calibration record has an image, and wanda measures"),
        (
            {"prune": "sparsegpt", "sparsity": 0.5, "parts": ["language", "projector"]},
            False,
            "no calibration record",
        ),
        ({**RECIPES["awq"], "parts": ["vision"]}, True, "llm-compressor's awq does not reach the vision"),
        (
            {**RECIPES["smoothquant"], "parts": ["projector"]},
            True,
            "smoothquant does not reach the projector",
        ),
        ({**RECIPES["gptq"], "parts": ["vision"]}, True, "gptq does not reach the vision"),
        ({**RECIPES["fp8-static"], "parts": ["vision"]}, True, "not every calibration record has one"),
    ],
)
def test_what_cannot_be_calibrated(
    llava: Path, tmp_path: Path, recipe: dict[str, Any], images: bool, told: str
) -> None:
    calibration = records(tmp_path, "calibration", 6, images=images)
    with pytest.raises(HoldfastError, match=told) as raised:
        compress(llava, tmp_path / "out", recipe | DRAW, calibration)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_text_only_model_calibrated_on_images(tmp_path: Path) -> None:
    calibration = records(tmp_path, "calibration", 6)
    with pytest.raises(HoldfastError, match="a text-only model, and the prompts have images") as raised:
        compress(tiny_llama(tmp_path / "llama"), tmp_path / "out", WANDA | DRAW, calibration)
    assert "\n" not in str(raised.value)


def test_a_compressed_checkpoint_has_its_processor_and_a_record_of_its_images(
    llava: Path, tmp_path: Path
) -> None:
    calibration = records(tmp_path, "calibration", 6)
    # Not a half, of which what is kept and what is gone cannot be told apart.
    recipe = WANDA | DRAW | {"sparsity": 0.3, "parts": ["language", "vision"]}
    compress(llava, tmp_path / "out", recipe, calibration)
    about = json.loads((tmp_path / "out/provenance.json").read_text())
    assert about["calibration"]["with_images"] == 4
    densities = {name: m["density"] for name, m in about["modules"].items()}
    assert densities.keys() == part_linears(load_model(llava), ["language", "vision"]).keys()
    assert all(value == pytest.approx(0.7, abs=0.02) for value in densities.values())
    assert (tmp_path / "out/processor_config.json").read_bytes() == (
        llava / "processor_config.json"
    ).read_bytes()
    asked = read_instructions(calibration, tmp_path / "out")
    chat = Chat(load_tokenizer(tmp_path / "out"), {})
    assert len(Transformers(load_model(tmp_path / "out"), chat).answer(asked, 2)) == 6


def test_no_linear_is_compressed_twice_or_forgotten(vlm: Path) -> None:
    model = load_model(vlm)
    parts = [set(part_linears(model, [part])) for part in parts_of(vlm, "language", "vision", "projector")]
    assert all(not a & b for i, a in enumerate(parts) for b in parts[i + 1 :])
    everything = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    head = module_name(model, model.get_output_embeddings())
    assert everything - {head} == set().union(*parts)


def test_every_part_that_study_v_names_is_in_every_family(vlm: Path) -> None:
    """A grid that cannot run is told when hours have gone by."""
    import yaml

    study = yaml.safe_load((Path(__file__).parents[2] / "config/vision.yaml").read_text())
    for recipe in study["compressions"].values():
        assert part_linears(load_model(vlm), recipe.get("parts") or ["language"])


def test_a_pooling_head_that_no_image_reaches_stays_as_it_is(tmp_path: Path) -> None:
    """SigLIP's, where a LLaVA reads its patches."""
    model = siglip_llava()
    folder = tiny_vlm("llava", tmp_path / "llava")
    samples = [s for s in drawn(folder, tmp_path) if isinstance(s, dict)]
    before = {name: p.clone() for name, p in model.named_parameters()}
    prune(model, {**WANDA, "parts": ["vision"]}, samples)
    for name in part_linears(model, ["vision"]):
        weight = model.get_parameter(f"{name}.weight")
        if name.endswith("head.attention.out_proj"):
            assert torch.equal(weight, before[f"{name}.weight"])
        else:
            assert (weight == 0).float().mean() == pytest.approx(0.5, abs=0.02), name


def siglip_llava() -> Any:
    """A LLaVA with a SigLIP tower, of as many image tokens as the tiny one with a CLIP tower."""
    import transformers
    from vlms import CLIP, TOWER, llava_config

    config, _ = llava_config()
    config.vision_config = transformers.SiglipVisionConfig(**TOWER, **CLIP)
    config.vision_feature_select_strategy = "full"
    return transformers.LlavaForConditionalGeneration(config).float().eval().requires_grad_(False)
