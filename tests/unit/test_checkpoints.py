import json
import shutil
from pathlib import Path

import pytest
import torch
from holdfast.checkpoints import load_model, load_tokenizer, save_model
from holdfast.compression import compress
from holdfast.edited_checkpoints import edited_copy, read_weight, set_weight
from holdfast.errors import HoldfastError
from holdfast.files import read_json, sha256
from holdfast.model_folders import headers, settings, weight_files
from holdfast.sources import fetch
from safetensors.torch import load_file, save_file
from tiny import tiny_llama
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

O_PROJ = "model.layers.2.self_attn.o_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
IDS = torch.arange(5, 45)[None]


def checksums(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in weight_files(folder)}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "dense", max_shard_size="100KB")


@pytest.fixture(scope="module")
def quantized(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quantized")
    nothing = folder / "unread.jsonl"
    compress(dense, folder / "w4a16", {"quantize": "rtn", "bits": 4, "group_size": 32}, nothing)
    compress(dense, folder / "int8", {"quantize": "llm-int8"}, nothing)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    nf4 = AutoModelForCausalLM.from_pretrained(dense, quantization_config=config)
    nf4.save_pretrained(folder / "nf4", max_shard_size="100KB")
    return {"dense": dense, **{kind: folder / kind for kind in ("w4a16", "int8", "nf4")}}


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(folder)(IDS).logits


def one_line(error: pytest.ExceptionInfo[HoldfastError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def inodes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in folder.iterdir()}


# ---- loading and saving


def test_saved_models_load_with_equal_logits_and_tied_embeddings(dense: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(dense), load_tokenizer(dense)
    save_model(model, tokenizer, tmp_path, settings={"system_prompt": "Be brief."})
    again = load_model(tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert not any(p.requires_grad for p in again.parameters())
    assert not again.training
    assert settings(tmp_path) == {"thinking": None, "system_prompt": "Be brief.", "trust_remote_code": False}
    assert load_tokenizer(tmp_path).chat_template == tokenizer.chat_template


def test_the_dtype_can_be_chosen(dense: Path) -> None:
    assert load_model(dense).dtype == torch.float32
    assert load_model(dense, "bfloat16").dtype == torch.bfloat16


def test_tokenizers_pad_on_the_left_with_the_end_token(dense: Path, tmp_path: Path) -> None:
    shutil.copytree(dense, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path / "model")
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "<|im_end|>")


def test_loading_says_nothing(quantized: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    load_model(quantized["dense"])
    load_model(quantized["w4a16"])
    load_model(quantized["int8"])
    assert capfd.readouterr() == ("", "")


def test_weights_that_are_not_finite_are_not_saved(dense: Path, tmp_path: Path) -> None:
    model = load_model(dense)
    model.get_parameter(DOWN)[3, 3] = float("nan")
    with pytest.raises(HoldfastError, match="NaN") as error:
        save_model(model, None, tmp_path)
    assert DOWN in one_line(error)
    assert not list(tmp_path.iterdir())


def test_bad_folders_are_told_in_one_line(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="no such folder") as error:
        load_model(tmp_path / "nowhere")
    one_line(error)
    with pytest.raises(HoldfastError, match=r"no config\.json") as error:
        load_model(tmp_path)
    one_line(error)
    shutil.copy(dense / "config.json", tmp_path)
    with pytest.raises(HoldfastError, match="no safetensors") as error:
        load_model(tmp_path)
    one_line(error)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(HoldfastError, match="pickle") as error:
        load_model(tmp_path)
    one_line(error)
    with pytest.raises(HoldfastError, match="tokenizer") as error:
        load_tokenizer(tmp_path)
    one_line(error)


def test_missing_weights_are_an_error_not_a_random_model(dense: Path, tmp_path: Path) -> None:
    shutil.copy(dense / "config.json", tmp_path)
    weights = {k: v for file in dense.glob("*.safetensors") for k, v in load_file(file).items() if k != DOWN}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HoldfastError, match="1 weights missing") as error:
        load_model(tmp_path)
    assert DOWN in one_line(error)


def test_unknown_settings_are_refused(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "holdfast.json").write_text('{"sytem_prompt": "x"}')
    with pytest.raises(HoldfastError, match="sytem_prompt"):
        settings(tmp_path)


# ---- quantized checkpoints


def test_w4a16_comes_back_dense_and_open_to_edits(quantized: dict[str, Path]) -> None:
    model = load_model(quantized["w4a16"])
    linear = model.get_submodule(O_PROJ.removesuffix(".weight"))
    assert type(linear) is torch.nn.Linear
    assert [name for name, _ in linear.named_parameters()] == ["weight"]
    levels = linear.weight.reshape(64, -1, 32)
    assert max(len(group.unique()) for row in levels for group in row) <= 16
    new = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    linear.weight.data = new
    x = torch.randn(3, 64)
    assert torch.equal(linear(x), x @ new.T)


@pytest.mark.parametrize("kind", ["dense", "w4a16", "int8", "nf4"])
def test_weights_read_from_shards_are_those_of_the_loaded_model(
    quantized: dict[str, Path], kind: str
) -> None:
    linear = load_model(quantized[kind]).get_submodule(O_PROJ.removesuffix(".weight"))
    read = read_weight(quantized[kind], O_PROJ)
    # int8 products are rounded once more, to their inputs' 8 bits.
    of_inputs = linear(torch.eye(linear.in_features)[None])[0].T
    assert torch.allclose(of_inputs, read, atol=1e-3 if kind == "int8" else 1e-6)
    original = read_weight(quantized["dense"], O_PROJ)
    assert (read - original).norm() / original.norm() < {"dense": 1e-9, "int8": 0.01}.get(kind, 0.15)


# ---- edited copies


@pytest.mark.parametrize("kind", ["dense", "w4a16", "int8", "nf4"])
def test_edited_copies_give_the_logits_of_the_same_edit_in_memory(
    quantized: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    source = quantized[kind]
    edits = {name: 0.5 * read_weight(source, name).float() for name in (O_PROJ, DOWN)}
    assert set(edited_copy(source, tmp_path / "edited", edits)) == set(edits)
    model = load_model(source)
    for name, weight in edits.items():
        set_weight(model, name, weight)
    with torch.inference_mode():
        expected = model(IDS).logits
    assert torch.equal(logits(tmp_path / "edited"), expected)
    assert (logits(source) - expected).abs().max() > 0.01
    for name, weight in edits.items():
        assert torch.equal(read_weight(tmp_path / "edited", name), weight)


def test_only_shards_with_changed_tensors_are_rewritten(dense: Path, tmp_path: Path) -> None:
    new = read_weight(dense, O_PROJ) + 1
    edited_copy(dense, tmp_path, {O_PROJ: new})
    places = {name: stored.file for name, stored in headers(dense).items()}
    assert len(set(places.values())) > 2
    old_inodes, new_inodes = inodes(dense), inodes(tmp_path)
    assert new_inodes.keys() == old_inodes.keys()
    assert {n for n in old_inodes if old_inodes[n] != new_inodes[n]} == {places[O_PROJ]}
    for name in places:
        same = torch.equal(read_weight(dense, name), read_weight(tmp_path, name))
        assert same == (name != O_PROJ)
    index = read_json(tmp_path / "model.safetensors.index.json")
    assert index["weight_map"] == places
    assert not list(dense.glob(".*"))


@pytest.mark.parametrize("kind", ["dense", "w4a16", "int8", "nf4"])
def test_an_edit_that_changes_nothing_copies_bit_for_bit(
    quantized: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    source = quantized[kind]
    same = {name: read_weight(source, name) for name in (O_PROJ, DOWN)}
    for number, edits in enumerate(({}, same)):
        out = tmp_path / str(number)
        assert edited_copy(source, out, edits) == []
        assert inodes(out) == {
            n: i for n, i in inodes(source).items() if n not in ("provenance.json", ".holdfast")
        }


@pytest.mark.parametrize(("kind", "key"), [("w4a16", "ignore"), ("int8", "llm_int8_skip_modules")])
def test_edited_modules_leave_the_quantization_config_and_their_packed_entries(
    quantized: dict[str, Path], tmp_path: Path, kind: str, key: str
) -> None:
    edited_copy(quantized[kind], tmp_path, {O_PROJ: read_weight(quantized[kind], O_PROJ).float() * 2})
    module = O_PROJ.removesuffix(".weight")
    assert read_json(tmp_path / "config.json")["quantization_config"][key] == ["lm_head", module]
    assert [entry for entry in headers(tmp_path) if entry.startswith(module)] == [O_PROJ]
    assert "lm_head" not in "".join(headers(tmp_path))
    # Once more: what is dense by now is edited like any dense weight.
    again = tmp_path / "again"
    edited_copy(tmp_path, again, {O_PROJ: read_weight(tmp_path, O_PROJ) * 2})
    assert read_json(again / "config.json")["quantization_config"][key] == ["lm_head", module]


def test_impossible_edits_are_told_in_one_line(dense: Path, tmp_path: Path) -> None:
    for edits, what in (
        ({"lm_head.weight": torch.zeros(400, 64)}, "no weight lm_head.weight"),
        ({O_PROJ: torch.zeros(3, 3)}, r"is \(64, 64\), not \(3, 3\)"),
        ({O_PROJ: torch.full((64, 64), float("inf"))}, "NaN or infinite"),
    ):
        with pytest.raises(HoldfastError, match=what) as error:
            edited_copy(dense, tmp_path / "out", edits)
        one_line(error)
        assert not (tmp_path / "out").exists()


def test_checksums_tell_changed_shards(dense: Path, tmp_path: Path) -> None:
    edited_copy(dense, tmp_path, {O_PROJ: read_weight(dense, O_PROJ) + 1})
    before, after = checksums(dense), checksums(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {headers(dense)[O_PROJ].file}


# ---- sources


def test_a_folder_is_fetched_by_hard_links(dense: Path, tmp_path: Path) -> None:
    recipe = {
        "source": f"path:{dense}",
        "adapter": None,
        "dtype": "float32",
        "system_prompt": "Hi.",
        "thinking": None,
    }
    fetch(recipe, tmp_path / "model")
    linked = {
        n: i
        for n, i in inodes(tmp_path / "model").items()
        if n not in ("holdfast.json", "provenance.json", ".holdfast")
    }
    assert linked == inodes(dense)
    assert settings(tmp_path / "model")["system_prompt"] == "Hi."
    provenance = read_json(tmp_path / "model" / "provenance.json")
    assert provenance["weights"] == checksums(dense)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_is_cast_shard_by_shard(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.sources.SHARD_BYTES", 100_000)
    fetch({"source": f"path:{dense}", "dtype": "bfloat16"}, tmp_path / "model")
    assert load_model(tmp_path / "model").dtype == torch.bfloat16
    assert torch.equal(logits(tmp_path / "model"), load_model(dense, "bfloat16")(IDS).logits)
    assert len(checksums(tmp_path / "model")) > 2
    assert max(f.stat().st_size for f in (tmp_path / "model").glob("*.safetensors")) < 110_000


def test_an_adapter_is_merged(dense: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    peft = get_peft_model(
        load_model(dense), LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
    )
    peft.save_pretrained(tmp_path / "lora")
    with torch.inference_mode():
        expected = peft(IDS).logits
    fetch({"source": f"path:{dense}", "adapter": f"path:{tmp_path / 'lora'}"}, tmp_path / "model")
    assert torch.allclose(logits(tmp_path / "model"), expected, atol=1e-4)
    assert (logits(dense) - expected).abs().max() > 0.1
    assert load_tokenizer(tmp_path / "model").chat_template


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ({"source": "git:x"}, "is no source"),
        ({"source": "path:/nowhere"}, "no such folder"),
        ({"source": "package:nothing"}, "no embedded model"),
        ({"source": "hub:nobody/nothing@main"}, "not downloaded"),
        ({"source": "path:x", "dtype": "int3"}, "unknown dtype"),
        ({"source": "path:x", "sauce": 1}, "unknown key sauce"),
        ({"source": "path:x", "adapter": "package:no_such_package/lora"}, "not installed"),
        ({"source": "path:x", "adapter": "path:/nowhere"}, "no adapter_config.json"),
    ],
)
def test_bad_sources_are_told_in_one_line(
    recipe: dict[str, object], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(HoldfastError, match=what) as error:
        fetch(recipe, tmp_path / "out")
    one_line(error)
    assert not (tmp_path / "out").exists()


def test_a_quantized_checkpoint_is_not_cast(quantized: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="quantized already"):
        fetch({"source": f"path:{quantized['w4a16']}", "dtype": "bfloat16"}, tmp_path / "out")
