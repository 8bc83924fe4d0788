"""Weight formats: what each stores, reads, leaves dense and quantizes again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gptq_checkpoints import auto_gptq_checkpoint, awq_checkpoint
from holdfast.architectures import decoder_linears
from holdfast.checkpoints import load_model
from holdfast.compression import compress, llm_compressor
from holdfast.edited_checkpoints import edited_copy, read_weight, set_weight
from holdfast.errors import HoldfastError
from holdfast.files import read_json
from holdfast.formats import bits_per_weight, format_of
from holdfast.model_folders import headers
from holdfast.skeletons import skeleton
from safetensors.torch import load_file, save_file
from tiny import TEXTS, tiny_llama, tiny_llava
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

O_PROJ = "model.layers.0.self_attn.o_proj"
DOWN = "model.layers.1.mlp.down_proj"
EDITED = (f"{O_PROJ}.weight", f"{DOWN}.weight")
IDS = torch.arange(5, 45)[None]
RECIPES: dict[str, dict[str, Any]] = {
    "w4a16": {"quantize": "rtn", "bits": 4, "group_size": 32},
    "w3a16-channel": {"quantize": "rtn", "bits": 3, "group_size": "channel"},
    "awq": {"quantize": "awq", "bits": 4, "group_size": 32},
    "w8a8": {"quantize": "smoothquant"},
    "fp8": {"quantize": "fp8", "activations": "dynamic"},
    "fp8-static": {"quantize": "fp8", "activations": "static"},
    "llm-int8": {"quantize": "llm-int8"},
    "nf4": {"quantize": "nf4"},
}
GPTQ: dict[str, dict[str, Any]] = {
    "gptq": {},
    "gptq-3-asymmetric-v2": {"bits": 3, "sym": False, "version": "gptq_v2"},
    "gptq-2-shuffled": {"bits": 2, "sym": False, "shuffled": True},
    "gptq-8-channel": {"bits": 8, "group_size": -1},
}
KINDS = ("dense", *RECIPES, "nf4-double", *GPTQ, "autoawq")
# Relative error of one more rounding to nearest: a half step of the widest range in a group.
ROUNDING = {"w3a16-channel": 0.4, "gptq-3-asymmetric-v2": 0.3, "gptq-2-shuffled": 0.6, "w8a8": 0.02,
            "llm-int8": 0.02, "gptq-8-channel": 0.02, "fp8": 0.05, "fp8-static": 0.05}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("formats")
    dense = tiny_llama(root / "dense", layers=2, max_shard_size="100KB")
    texts = root / "calibration.jsonl"
    texts.write_text("".join(json.dumps({"id": str(i), "text": t * 3}) + "\n" for i, t in enumerate(TEXTS)))
    for name, recipe in RECIPES.items():
        drawn = {"samples": 4, "tokens": 32, "seed": 0} if name in ("awq", "w8a8", "fp8-static") else {}
        compress(dense, root / name, recipe | drawn, texts)
    for name, options in GPTQ.items():
        auto_gptq_checkpoint(dense, root / name, **options)
    awq_checkpoint(dense, root / "autoawq")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(dense, quantization_config=config)
    model.save_pretrained(root / "nf4-double", max_shard_size="100KB")
    return {name: root / name for name in KINDS}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def edits(folder: Path) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    old = {name: read_weight(folder, name).float() for name in EDITED}
    return {
        name: w + 0.1 * torch.outer(torch.randn(len(w), generator=draw), torch.ones(w.shape[1]))
        for name, w in old.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_the_model_computes_with(made: dict[str, Path], kind: str) -> None:
    module = load_model(made[kind]).get_submodule(O_PROJ)
    weight = read_weight(made[kind], f"{O_PROJ}.weight").float()
    original = read_weight(made["dense"], f"{O_PROJ}.weight")
    if kind not in ("awq", "w8a8"):  # those scale the weights of o_proj before they round them
        assert (weight - original).norm() / original.norm() <= ROUNDING.get(kind, 0.15)
    x = torch.eye(weight.shape[1])
    with torch.inference_mode():
        # The identity's entries are exact in 8 bits, so that rounded activations change nothing.
        assert torch.allclose(module(x).float(), weight.T, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_edit_leaves_every_other_tensor_and_shard_alone(
    made: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    new = edits(made[kind])
    assert edited_copy(made[kind], tmp_path, new) == list(new)
    before, after = tensors(made[kind]), tensors(tmp_path)
    assert all(same(before[name], after[name]) for name in set(before) & set(after) - set(new))
    gone = {name for name in before if name.startswith((f"{O_PROJ}.", f"{DOWN}."))} - set(new)
    assert set(before) - set(after) == gone
    assert (kind == "dense") != bool(gone)
    for name, weight in new.items():
        assert torch.equal(after[name], weight)
    touched = {headers(made[kind])[name].file for name in gone or new}
    for file in made[kind].glob("*.safetensors"):
        assert (file.stat().st_ino == (tmp_path / file.name).stat().st_ino) == (file.name not in touched)
    model = load_model(made[kind])
    for name, weight in new.items():
        set_weight(model, name, weight)
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_requantized_edit_keeps_names_shapes_and_config(
    made: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    new = edits(made[kind])
    assert edited_copy(made[kind], tmp_path, new, requantize=True) == list(new)
    before, after = tensors(made[kind]), tensors(tmp_path)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        # bitsandbytes writes a number of its state in decimals, as many as it takes.
        assert tensor.shape == after[name].shape or "quant_state" in name
        if not name.startswith((f"{O_PROJ}.", f"{DOWN}.")):
            assert same(tensor, after[name])
    assert read_json(tmp_path / "config.json") == read_json(made[kind] / "config.json")
    for name, weight in new.items():
        stored = read_weight(tmp_path, name).float()
        assert (stored - weight).norm() / weight.norm() <= (
            0 if kind == "dense" else ROUNDING.get(kind, 0.15)
        )
        assert (stored - weight).norm() < (read_weight(made[kind], name).float() - weight).norm()
    model = load_model(made[kind])
    assert not torch.equal(logits(load_model(tmp_path)), logits(model))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "dense"])
def test_quantizing_a_weight_again_equals_quantizing_it_once(
    made: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    """Of formats that round to nearest: the original weight, written back, gives the stored values."""
    if kind in ("awq", "w8a8"):
        pytest.skip("their stored weights are those of a rescaled model")
    original = {name: read_weight(made["dense"], name) for name in EDITED}
    edited_copy(made[kind], tmp_path, original, requantize=True)
    for name in EDITED:
        assert torch.allclose(
            read_weight(tmp_path, name).float(), read_weight(made[kind], name).float(), atol=1e-6
        )


def bits(folder: Path) -> dict[str, float]:
    linears = decoder_linears(skeleton(folder))
    return bits_per_weight(folder, {name: linear.weight.numel() for name, linear in linears.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_bits_per_weight_count_what_lies_on_disk(made: dict[str, Path], kind: str) -> None:
    found = bits(made[kind])
    assert len(found) == 14
    stored = tensors(made[kind])
    size = sum(t.nbytes for name, t in stored.items() if name.startswith(f"{DOWN}."))
    assert found[DOWN] == 8 * size / (64 * 128)


def test_bits_per_weight_of_known_layouts(made: dict[str, Path]) -> None:
    # int4, a half-precision scale and a 4-bit zero for every 32 weights, an int32 group for each of 128 inputs.
    assert bits(made["gptq"])[DOWN] == 4 + (16 + 4) / 32 + 32 / 64
    assert bits(made["dense"])[DOWN] == 32
    # int8 values, a float32 SCB a row of 128 inputs, one byte of weight_format.
    assert bits(made["llm-int8"])[DOWN] == 8 + 32 / 128 + 8 / (64 * 128)


def test_methods_that_are_not_known_are_refused_in_one_line(made: dict[str, Path], tmp_path: Path) -> None:
    config = read_json(made["dense"] / "config.json") | {"quantization_config": {"quant_method": "quip"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(HoldfastError, match="quantized by quip cannot be read") as error:
        format_of(tmp_path)
    assert "\n" not in str(error.value)


def test_schemes_that_cannot_be_written_are_refused_in_one_line(
    made: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "five"
    folder.mkdir()
    for file in made["gptq"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = read_json(folder / "config.json")
    config["quantization_config"]["bits"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(HoldfastError, match="5 bits") as error:
        read_weight(folder, EDITED[0])
    assert "\n" not in str(error.value)
    with pytest.raises(HoldfastError, match="5 bits"):
        load_model(folder)


@pytest.mark.parametrize("kind", ["dense", "w4a16", "gptq", "llm-int8"])
def test_damaged_shards_are_told_in_one_line(made: dict[str, Path], kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in made[kind].iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    places = headers(source)
    entry = next(name for name in places if name.startswith(f"{O_PROJ}."))
    shard = source / places[entry].file
    whole = shard.read_bytes()

    def told(what: str) -> None:
        for act in (
            lambda: load_model(source),
            lambda: edited_copy(source, tmp_path / "out", edits(made[kind])),
        ):
            with pytest.raises(HoldfastError, match=what) as error:
                act()
            assert "\n" not in str(error.value)
            assert shard.name in str(error.value)

    for content, what in (
        (whole[:-9], "bytes where its header says"),
        (whole[:30], "header is damaged"),
        (b"", "no safetensors header"),
        (b"\xff" * 200, "no safetensors header"),
    ):
        shard.write_bytes(content)
        told(what)
    shard.write_bytes(whole)
    held = load_file(shard)
    floating = next(name for name in held if name.startswith(f"{O_PROJ}.") and held[name].is_floating_point())
    held[floating].view(-1)[3] = float("nan")
    save_file(held, shard, metadata={"format": "pt"})
    told("NaN or infinite")


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vision")
    tiny_llava(root / "dense")
    model = load_model(root / "dense")
    llm_compressor.quantize(model, {"quantize": "rtn", "bits": 4, "group_size": 32}, [])
    (root / "w4a16").mkdir()
    llm_compressor.save(model, root / "w4a16")
    return {kind: root / kind for kind in ("dense", "w4a16")}


@pytest.mark.parametrize("kind", ["dense", "w4a16"])
@pytest.mark.parametrize("requantize", [False, True])
def test_weights_go_by_the_models_names_where_files_use_others(
    vision: dict[str, Path], kind: str, requantize: bool, tmp_path: Path
) -> None:
    module = "model.language_model.layers.1.mlp.down_proj"
    before = load_model(vision[kind])
    weight = read_weight(vision[kind], f"{module}.weight")
    assert torch.equal(before.get_submodule(module).weight, weight)
    assert bits(vision[kind])[module] == {"dense": 32, "w4a16": 4 + 1 + 128 / weight.numel()}[kind]
    assert edited_copy(vision[kind], tmp_path, {f"{module}.weight": weight * 2}, requantize)
    after = load_model(tmp_path)
    for name, parameter in after.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name)) == (name != f"{module}.weight")
    assert torch.allclose(after.get_submodule(module).weight, weight * 2, atol=0.1 if requantize else 0)
