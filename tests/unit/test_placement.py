"""How a model is spread over the GPUs that a job sees."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.checkpoints import load_model, placement, weight_bytes
from tiny import tiny_llama
from transformers import LlamaForCausalLM


def test_a_model_that_fits_stays_on_one_gpu() -> None:
    assert placement(16 * 10**9, [80 * 10**9] * 4) == {"": 0}
    assert placement(141 * 10**9, [80 * 10**9] * 4) == "auto"
    assert placement(16 * 10**9, [12 * 10**9]) == "auto"


def test_gpus_that_were_asked_for_are_used() -> None:
    assert placement(16 * 10**9, [24 * 10**9] * 2, given=2) == "auto"
    assert placement(16 * 10**9, [24 * 10**9] * 2, given=1) == {"": 0}
    assert placement(16 * 10**9, [24 * 10**9], given=2) == {"": 0}


@pytest.mark.parametrize(
    ("free", "slurms", "device_map"),
    [
        (10**9, {}, {"": 0}),
        (10**4, {}, "auto"),
        (10**9, {"SLURM_STEP_GPUS": "0"}, {"": 0}),
        (10**9, {"SLURM_STEP_GPUS": "2,3"}, "auto"),
        (10**9, {"SLURM_JOB_GPUS": "2,3"}, "auto"),
    ],
)
def test_loading_looks_at_the_gpus_that_are_visible_and_at_those_that_slurm_gave(
    free: int,
    slurms: dict[str, str],
    device_map: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What loading asks of transformers, on a machine that claims two GPUs with so much free memory each."""
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        monkeypatch.delenv(name, raising=False)
    for name, gpus in slurms.items():
        monkeypatch.setenv(name, gpus)
    asked: dict[str, Any] = {}
    plain = LlamaForCausalLM.from_pretrained.__func__

    def from_pretrained(kind: Any, *args: Any, device_map: Any, **options: Any) -> Any:
        asked["device_map"] = device_map
        return plain(kind, *args, **options)

    folder = tiny_llama(tmp_path / "model")
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**11))
    load_model(folder)
    assert asked["device_map"] == device_map


def test_gpus_that_slurm_gave_and_torch_does_not_see_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_llama(tmp_path / "model")
    load_model(folder)
    assert "Slurm" not in capsys.readouterr().err
    monkeypatch.setenv("SLURM_STEP_GPUS", "0,1")
    load_model(folder)
    told = "warning: Slurm gave this job GPUs (0,1), and torch sees none: it runs on the CPU"
    assert told in capsys.readouterr().err


def test_weights_are_counted_in_the_dtype_they_are_loaded_in(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    whole = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert weight_bytes(folder) == weight_bytes(folder, "auto") == pytest.approx(whole, rel=0.05)
    assert 2 * weight_bytes(folder, torch.bfloat16) == weight_bytes(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "new", "hidden_size": "?"}))
    assert weight_bytes(folder) == pytest.approx(whole, rel=0.05)
