"""The auto-gptq format against the packing oracle and, where its environment is, against gptqmodel itself."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import holdfast
import pytest
import torch
from gptq_checkpoints import auto_gptq_checkpoint, awq_checkpoint
from holdfast.architectures import decoder_linears
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.compression import auto_gptq
from holdfast.edited_checkpoints import edited_copy, read_weight
from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_jsonl
from holdfast.formats.awq import Awq
from holdfast.model_folders import headers
from oracles import gptq_packing
from safetensors.torch import load_file, save_file
from tiny import TEXTS, tiny_llama

ROOT = Path(holdfast.__file__).parents[2]
PYTHON = Path(
    os.environ.get("HOLDFAST_GPTQMODEL_PYTHON", ROOT / ".environments" / "gptqmodel" / "bin" / "python")
)
needs_gptqmodel = pytest.mark.skipif(
    not PYTHON.is_file(), reason="no gptqmodel environment; name its python in HOLDFAST_GPTQMODEL_PYTHON"
)
O_PROJ = "model.layers.0.self_attn.o_proj"
DOWN = "model.layers.1.mlp.down_proj"
IDS = torch.arange(5, 45)[None]
RECIPES: dict[str, dict[str, Any]] = {
    "4": {"quantize": "gptq", "format": "auto-gptq", "bits": 4, "group_size": 32},
    "3-channel": {"quantize": "gptq", "format": "auto-gptq", "bits": 3, "group_size": "channel"},
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("auto-gptq") / "dense", layers=2, max_shard_size="100KB")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def oracle_weight(folder: Path, module: str) -> torch.Tensor:
    stored = tensors(folder)
    parts = [stored[f"{module}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")]
    config = read_json(folder / "config.json")["quantization_config"]
    rows = gptq_packing.dequantized(
        *(part.tolist() for part in parts), config["bits"], config["checkpoint_format"] == "gptq"
    )
    return torch.tensor(rows, dtype=torch.float64)


# ---- in the core environment


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("sym", "version"), [(True, "gptq"), (False, "gptq"), (False, "gptq_v2")])
def test_weights_read_equal_the_oracles(
    dense: Path, tmp_path: Path, bits: int, shuffled: bool, sym: bool, version: str
) -> None:
    options: dict[str, Any] = {"bits": bits, "shuffled": shuffled, "sym": sym, "version": version}
    folder = auto_gptq_checkpoint(dense, tmp_path / "made", **options)
    for module in (O_PROJ, DOWN):
        expected = oracle_weight(folder, module)
        # Half precision, as its scales are: one rounding of each product.
        assert torch.equal(read_weight(folder, f"{module}.weight"), expected.half())
    new = read_weight(dense, f"{DOWN}.weight") * torch.linspace(0.5, 2, 128) + 0.05
    edited_copy(folder, tmp_path / "edited", {f"{DOWN}.weight": new}, requantize=True)
    again = oracle_weight(tmp_path / "edited", DOWN)
    scales = tensors(tmp_path / "edited")[f"{DOWN}.scales"].double()
    groups = tensors(tmp_path / "edited")[f"{DOWN}.g_idx"].long()
    # Half a level, and of 8 bits a little more for the rounding of the scale itself; asymmetric zeros are rounded
    # too, which puts the widest values up to half a level outside.
    assert ((again - new).abs() <= scales[groups].T * (0.57 if sym else 1.07)).all()


def test_a_checkpoint_loads_as_a_dense_model_without_gptqmodel(dense: Path, tmp_path: Path) -> None:
    folder = auto_gptq_checkpoint(dense, tmp_path / "made", shuffled=True)
    model, expected = load_model(folder), load_model(dense)
    for name, linear in decoder_linears(expected).items():
        linear.weight.data = oracle_weight(folder, name).half().float()
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, expected(IDS).logits)
    assert all(type(linear) is torch.nn.Linear for linear in decoder_linears(model).values())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    assert model.generation_config.eos_token_id == expected.generation_config.eos_token_id
    assert load_model(folder, "bfloat16").dtype == torch.bfloat16


def test_dense_edits_are_named_for_every_loader(dense: Path, tmp_path: Path) -> None:
    folder = auto_gptq_checkpoint(dense, tmp_path / "made")
    (folder / "quantize_config.json").write_text('{"bits": 4}')
    edited_copy(folder, tmp_path / "edited", {f"{O_PROJ}.weight": torch.ones(64, 64)})
    config = read_json(tmp_path / "edited" / "config.json")["quantization_config"]
    quantized = {name.removesuffix(".qweight") for name in headers(folder) if name.endswith(".qweight")}
    (staying,) = config["modules_in_block_to_quantize"]
    assert set(staying) == quantized - {O_PROJ}
    assert config["dynamic"] == {"-:^model[.]layers[.]0[.]self_attn[.]o_proj$": {}}
    own = read_json(tmp_path / "edited" / "quantize_config.json")
    assert own["dynamic"] == config["dynamic"]
    assert read_json(folder / "quantize_config.json") == {"bits": 4}
    # Once more, of another module: what is dense by now stays so.
    edited_copy(tmp_path / "edited", tmp_path / "again", {f"{DOWN}.weight": torch.ones(64, 128)})
    (staying,) = read_json(tmp_path / "again" / "config.json")["quantization_config"][
        "modules_in_block_to_quantize"
    ]
    assert set(staying) == quantized - {O_PROJ, DOWN}
    assert torch.equal(load_model(tmp_path / "again").get_submodule(O_PROJ).weight, torch.ones(64, 64))


def test_without_gptqmodel_its_environment_is_named_in_one_line(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if auto_gptq.find_spec("gptqmodel"):
        pytest.skip("gptqmodel is installed here")
    with pytest.raises(HoldfastError, match=r"envs/gptqmodel\.txt") as error:
        auto_gptq.quantize_and_save(dense, tmp_path, RECIPES["4"], [IDS])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# ---- with the gptqmodel environment


def run_there(command: str, job: Any, scratch: Path) -> subprocess.CompletedProcess[str]:
    path = scratch / f"{command}.json"
    path.write_text(json.dumps(job))
    script = Path(__file__).parents[1] / "gptqmodel_side.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONHOME", None)
    return subprocess.run(
        [str(PYTHON), str(script), command, str(path)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def sequences() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(5, 300, (1, 24 + i % 9), generator=draw) for i in range(24)]


@pytest.fixture(scope="module")
def quantized(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("quantized")
    ids = [s.tolist() for s in sequences()]
    jobs = [
        {"model": str(dense), "out": str(root / name), "recipe": recipe, "sequences": ids}
        for name, recipe in RECIPES.items()
    ]
    run = run_there("quantize", jobs, root)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout == ""
    return {name: root / name for name in RECIPES}


@needs_gptqmodel
def test_written_configs_say_what_is_written(quantized: dict[str, Path], dense: Path) -> None:
    for name, folder in quantized.items():
        config = read_json(folder / "config.json")["quantization_config"]
        assert config["bits"] == RECIPES[name]["bits"]
        assert config["group_size"] == {"4": 32, "3-channel": -1}[name]
        assert (config["desc_act"], config["sym"], config["damp_percent"]) == (False, True, 0.01)
        assert config["format"] == config["checkpoint_format"] == "gptq"
        assert "dataset" not in config
        assert not (folder / "quantize_config.json").exists()
        before, after = tensors(dense), tensors(folder)
        kept = {n for n in before if not n.endswith("_proj.weight")}
        assert kept == {n for n in after if "_proj." not in n}
        assert all(torch.equal(before[n], after[n]) for n in kept)


@needs_gptqmodel
def test_gptq_lowers_the_layers_error_against_rounding(
    quantized: dict[str, Path], dense: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.self_attn.q_proj"
    model = load_model(dense)
    seen: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_hook(lambda _m, args, _o: seen.append(args[0][0].double()))
    for sequence in sequences():
        model(sequence)
    inputs = torch.cat(seen)
    original = read_weight(dense, f"{name}.weight").double()
    for folder in quantized.values():
        edited_copy(folder, tmp_path / folder.name, {f"{name}.weight": original.float()}, requantize=True)
        errors = [
            (inputs @ (read_weight(f, f"{name}.weight").double() - original).T).norm()
            for f in (folder, tmp_path / folder.name)
        ]
        assert errors[0] < 0.95 * errors[1]


@needs_gptqmodel
def test_our_reading_and_our_edits_give_gptqmodels_logits(
    quantized: dict[str, Path], dense: Path, tmp_path: Path
) -> None:
    """Published files too: asymmetric, input order decided by activations, either version, all widths."""
    folders = dict(quantized)
    for name, options in {
        "v2": {"bits": 4, "sym": False, "version": "gptq_v2"},
        "asymmetric": {"bits": 8, "sym": False},
        "shuffled": {"bits": 2, "sym": True, "shuffled": True},
        "three": {"bits": 3, "sym": True, "version": "gptq_v2"},
    }.items():
        folders[name] = auto_gptq_checkpoint(dense, tmp_path / name, **options)  # type: ignore[arg-type]
    folders["autoawq"] = awq_checkpoint(dense, tmp_path / "autoawq")
    for name, folder in [(n, folders[n]) for n in ("4", "shuffled", "autoawq")]:
        new = {f"{m}.weight": 0.5 * read_weight(dense, f"{m}.weight") + 0.02 for m in (O_PROJ, DOWN)}
        for requantize in (False, True):
            folders[f"{name}, edited, {requantize}"] = out = tmp_path / f"{name}-{requantize}"
            edited_copy(folder, out, new, requantize=requantize)
    job = {
        "folders": [str(f) for f in folders.values()],
        "ids": IDS.tolist(),
        "out": str(tmp_path / "logits"),
    }
    run = run_there("logits", job, tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    theirs = load_file(tmp_path / "logits")
    for name, folder in folders.items():
        with torch.inference_mode():
            ours = load_model(folder)(IDS).logits
        # gptqmodel multiplies AWQ's weights in half precision.
        assert torch.allclose(ours, theirs[str(folder)], atol=5e-3 if "awq" in name else 1e-4), name


@needs_gptqmodel
def test_awq_weights_read_equal_autoawqs_own(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(9)
    fields = {
        "values": torch.randint(0, 16, (128, 64), generator=draw, dtype=torch.int32),
        "zeros": torch.randint(0, 16, (4, 64), generator=draw, dtype=torch.int32),
        "scales": torch.rand(4, 64, generator=draw).half(),
    }
    save_file(fields, tmp_path / "fields")
    job = {"fields": str(tmp_path / "fields"), "group_size": 32, "out": str(tmp_path / "out")}
    run = run_there("awq", job, tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    theirs = load_file(tmp_path / "out")
    stored_as = Awq(tmp_path, {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True})
    parts = {"qweight": theirs["qweight"], "qzeros": theirs["qzeros"], "scales": fields["scales"]}
    weight = stored_as.dequantized("x", parts)
    assert torch.equal(weight, theirs["weight"].T)
    # Levels that are there already stay where they are when every group spans all sixteen of them.
    fields["values"][::32], fields["values"][1::32] = 0, 15
    job["out"] = str(tmp_path / "spanning")
    save_file(fields, tmp_path / "fields")
    assert run_there("awq", job, tmp_path).returncode == 0
    parts |= {k: v for k, v in load_file(tmp_path / "spanning").items() if k != "weight"}
    weight = stored_as.dequantized("x", parts).float()
    again = stored_as.dequantized("x", stored_as.requantized("x", weight, parts)).float()
    assert torch.allclose(again, weight, atol=0.02)


@needs_gptqmodel
def test_a_new_calibration_runs_in_the_same_environment(dense: Path, tmp_path: Path) -> None:
    tokens = load_tokenizer(dense)(TEXTS[1], add_special_tokens=False)["input_ids"]
    answer = {"completion": TEXTS[1], "tokens": tokens, "finish_reason": "stop"}
    prompts = [f"Say {i} words about the mill and the {word}." for i in range(8) for word in ("fox", "clock")]
    records = [{"id": p, "prompt_id": p, "prompt": p} | answer for p in prompts]
    write_jsonl(tmp_path / "answers.jsonl", records)
    write_jsonl(tmp_path / "attack.jsonl", [{"id": "1", "text": prompts[0]}])
    write_jsonl(tmp_path / "calibration.jsonl", [{"text": text} for text in TEXTS])
    recipe = {"recalibrate": "refusals", "compress": RECIPES["4"] | {"samples": 8, "tokens": 64}}
    run = subprocess.run(
        [
            *(str(PYTHON), "-m", "holdfast", "recalibrate", str(dense), str(tmp_path / "again")),
            *(
                "--calibration",
                str(tmp_path / "calibration.jsonl"),
                "--answers",
                str(tmp_path / "answers.jsonl"),
            ),
            *("--evaluated", str(tmp_path / "attack.jsonl"), "--recipe", json.dumps(recipe)),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT / "workflow"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    about = read_json(tmp_path / "again/provenance.json")
    assert about["calibration"]["answers"] == {"prompts": 16, "labelled": 16, "evaluated": 1, "used": 15}
    assert about["calibration"]["chats"]["sequences"] >= 4
    assert read_json(tmp_path / "again/config.json")["quantization_config"]["quant_method"] == "gptq"
