"""A whole study through Snakemake on a tiny model: every stage for real, killed half way, run again, extended."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from holdfast.files import read_json, write_jsonl
from tiny import TEXTS, tiny_llama

ROOT = Path(__file__).parents[2]
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]


def prompt_set(folder: Path, role: str, count: int) -> dict[str, Any]:
    texts = [f"{TEXTS[(i + len(role)) % len(TEXTS)][: 12 + i]} {role} {i}" for i in range(count)]
    write_jsonl(folder / f"{role}.jsonl", [{"id": f"{role}{i}", "text": t} for i, t in enumerate(texts)])
    return {"source": f"file:{role}.jsonl"}


def make_study(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    tiny_llama(folder / "model")
    (folder / "heldout.txt").write_text(" ".join(TEXTS) * 4)
    study = {
        "study": "tiny",
        "models": {"tiny": {"source": "path:model", "dtype": "float32"}},
        "compressions": {"dense": {}, "rtn-w4": {"quantize": "rtn", "bits": 4, "group_size": 32}},
        "methods": {
            "as-is": {},
            "aird": {"edit": "aird", "variant": "amplify", "layer": [1], "alpha": 0.5, "requantize": True},
            "random-edit": {"edit": "aird", "direction": "random", "matched_to": "aird"},
        },
        "calibration": {"source": "package:holdfast/data/calibration.jsonl", "samples": 2, "tokens": 16},
        "prompts": {
            "harmful_train": prompt_set(folder, "harmful_train", 8),
            "harmful_validation": prompt_set(folder, "harmful_validation", 4),
            "harmless_train": prompt_set(folder, "harmless_train", 8),
            "harmless_validation": prompt_set(folder, "harmless_validation", 4),
            "attack": prompt_set(folder, "attack", 6),
            "over_refusal": prompt_set(folder, "over_refusal", 5),
        },
        "direction": {"positions": [-1], "layers": [1, 2]},
        "evaluate": {
            "generate": {"max_new_tokens": 6},
            "judges": ["arditi-12", "study-l-31", "guard"],
            "judge_models": {"guard": {"judge": "wildguard", "source": "path:model"}},
            "mediation": {"prompts": 3, "max_new_tokens": 4, "random_seeds": 1},
            "zero_shot": {"tasks": ["holdfast_choice"], "limit": 4},
            "perplexity": {"source": "file:heldout.txt", "window": 32, "windows": 3},
        },
    }
    save(folder, study)
    return study


def save(folder: Path, study: dict[str, Any]) -> None:
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


def run(folder: Path, *options: str) -> str:
    command = [*SNAKEMAKE, "--configfile", "study.yaml", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def planned(folder: Path) -> Counter[str]:
    """Jobs of a dry run, by rule."""
    text = run(folder, "--dry-run", "--quiet", "host", "progress")
    return Counter(re.findall(r"^(?:local)?rule (\w+):", text, re.MULTILINE))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "study"
    make_study(folder)
    run(folder)
    return folder


def test_every_cell_is_in_the_table(finished: Path) -> None:
    table = pd.read_csv(finished / "results/tiny/tables/refusal.csv")
    assert list(table.columns) == ["model", "compression", "method", "measure", "value", "n", "low", "high"]
    cells = set(table[["compression", "method"]].itertuples(index=False, name=None))
    assert cells == {("dense", "as-is"), *(("rtn-w4", m) for m in ("as-is", "aird", "random-edit"))}
    rates = table[table["measure"] == "attack_success_rate"]
    assert len(rates) == 4
    assert (rates["n"] == 6).all()
    assert ((rates["low"] <= rates["value"]) & (rates["value"] <= rates["high"])).all()
    needed = {"over_refusal", "genuine_refusal", "perplexity", "cosine_to_dense", "cosine_null_split_half"}
    assert needed <= set(table.dropna(subset="value")["measure"])


def test_a_random_model_judge_leaves_every_answer_open(finished: Path) -> None:
    table = pd.read_csv(finished / "results/tiny/tables/refusal.csv")
    assert table[table["measure"] == "attack_success_rate[guard]"]["value"].isna().tolist() == [True] * 4
    unread = table[table["measure"] == "unparsed[guard]"]
    assert (unread["value"] == 1).all()
    assert (unread["n"] == 6).all()
    record = read_json(finished / "results/tiny/tiny/rtn-w4/aird/verdicts/guard/provenance.json")
    assert record["unparsed"] == {"attack": 6, "over_refusal": 5}
    assert "results/tiny/judges/guard/checkpoint" in record["inputs"]


def test_every_stage_left_its_record_and_page(finished: Path) -> None:
    results = finished / "results/tiny"
    for name in ("tables/refusal.md", "tables/refusal.tex", "report/index.html", "figures/asr.svg"):
        assert (results / name).stat().st_size > 500
    for stage in ("checkpoint", "activations", "direction", "mediation"):
        record = read_json(results / "tiny/rtn-w4" / stage / "provenance.json")
        assert record["packages"]["torch"]
        assert record["inputs"]
    edit = read_json(results / "tiny/rtn-w4/aird/checkpoint/edit.json")
    control = read_json(results / "tiny/rtn-w4/random-edit/checkpoint/edit.json")
    assert (edit["layers"], edit["alpha"]) == (control["layers"], control["alpha"]) == ([1], 0.5)
    # Quantized again, both: other weights, no exception in the config, as many bits.
    before = read_json(results / "tiny/rtn-w4/checkpoint/provenance.json")
    for name, about in (("aird", edit), ("random-edit", control)):
        folder = results / "tiny/rtn-w4" / name / "checkpoint"
        assert about["requantize"] is True
        assert read_json(folder / "config.json")["quantization_config"]["ignore"] == ["lm_head"]
        after = read_json(folder / "provenance.json")
        assert after["weights"] != before["weights"]
        assert after["modules"] == before["modules"]


def test_second_run_starts_no_job(finished: Path) -> None:
    assert "Nothing to be done" in run(finished)


def test_added_model_runs_its_cells_and_the_tables_only(finished: Path) -> None:
    study = yaml.safe_load((finished / "study.yaml").read_text())
    tiny_llama(finished / "second", seed=1)
    save(
        finished,
        {**study, "models": {**study["models"], "second": {"source": "path:second", "dtype": "float32"}}},
    )
    jobs = planned(finished)
    save(finished, study)
    assert jobs == {
        **{
            "fetch": 1,
            "compress": 1,
            "activations": 2,
            "direction": 2,
            "compare": 1,
            "transfer": 1,
            "mediate": 2,
            "edit": 2,
        },
        **{
            "generate": 4,
            "judge": 4,
            "judge_by_model": 4,
            "ability": 4,
            "tables": 1,
            "figures": 1,
            "report": 1,
            "all": 1,
        },
    }


def test_killed_study_finishes_with_the_same_table_and_redoes_nothing_finished(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    make_study(folder)
    command = [*SNAKEMAKE, "--configfile", "study.yaml"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        waited_for = folder / "results/tiny/tiny/dense/direction/provenance.json"
        deadline = time.monotonic() + 300
        while not waited_for.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)  # Snakemake and the stages under it, with no chance to tidy up
    assert waited_for.exists()
    done = {
        p: p.stat().st_mtime_ns
        for p in (folder / "results/tiny").rglob("provenance.json")
        if p.parent.name in {"checkpoint", "activations"}
        and not any(part.startswith(".") for part in p.parts)
    }
    assert done
    run(folder)
    assert {p: p.stat().st_mtime_ns for p in done} == done
    table = "results/tiny/tables/refusal.csv"
    assert (folder / table).read_text() == (finished / table).read_text()


def test_bad_config_ends_before_any_job_without_traceback(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    study["compressions"]["too-much"] = {"prune": "wanda", "sparsity": 1.5}  # type: ignore[index]
    save(tmp_path / "study", study)
    command = [*SNAKEMAKE, "--configfile", "study.yaml"]
    done = subprocess.run(command, cwd=tmp_path / "study", capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "compressions.too-much.sparsity" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "study/results").exists()


def test_a_failed_cell_is_marked_missing_and_filled_in_by_the_next_run(
    finished: Path, tmp_path: Path
) -> None:
    folder, control = tmp_path / "study", "results/tiny/tiny/rtn-w4/random-edit/checkpoint"
    shutil.copytree(finished, folder, symlinks=True)
    shutil.rmtree(folder / control)
    (folder / control).mkdir()
    (folder / control / "notes.txt").write_text("no checkpoint is written over what is not Holdfast's")
    study = yaml.safe_load((folder / "study.yaml").read_text())
    study["methods"]["random-edit"]["seed"] = 5
    save(folder, study)
    done = subprocess.run(
        [*SNAKEMAKE, "--configfile", "study.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    table = pd.read_csv(folder / "results/tiny/tables/refusal.csv")
    marked = table[table["measure"].str.startswith("missing[")]
    assert marked[["compression", "method", "measure"]].values.tolist() == [
        ["rtn-w4", "random-edit", "missing[edit]"]
    ]
    of_cell = table[(table["method"] == "random-edit") & (table["measure"] == "perplexity")]
    assert of_cell["value"].isna().all()
    assert "rtn-w4/random-edit (edit failed)" in (folder / "results/tiny/report/index.html").read_text()
    (folder / control / "notes.txt").unlink()
    del study["methods"]["random-edit"]["seed"]
    save(folder, study)
    run(folder)
    tables = "results/tiny/tables"
    for name in ("refusal.csv", "claims.csv", "leaderboard.csv"):  # all others show seconds
        assert (folder / tables / name).read_bytes() == (finished / tables / name).read_bytes(), name
    assert "Nothing to be done" in run(folder)


def test_checkpoints_that_are_not_kept_come_back_for_what_needs_them(finished: Path, tmp_path: Path) -> None:
    folder, model = tmp_path / "study", tmp_path / "study/results/tiny/tiny"
    shutil.copytree(finished, folder, symlinks=True)
    study = yaml.safe_load((folder / "study.yaml").read_text())
    save(folder, {**study, "keep_checkpoints": False})
    run(folder)
    weights = [p for p in model.rglob("*.safetensors") if p.parent.name == "checkpoint"]
    assert weights == [model / "dense/checkpoint/model.safetensors"]
    assert "Nothing to be done" in run(folder)
    study["evaluate"]["attacks"] = {"opened": {"prefix": "Sure"}}
    save(folder, {**study, "keep_checkpoints": False})
    assert planned(folder) == {
        **dict.fromkeys(("attack", "judge_attack"), 4) | {"discard": 2},
        **dict.fromkeys(("discard_compressed", "tables", "figures", "report", "all"), 1),
    }
    run(folder)
    for method in ("as-is", "aird", "random-edit"):
        assert (model / f"rtn-w4/{method}/attacks/opened/verdicts/attack.jsonl").is_file()
    assert [p for p in model.rglob("*.safetensors") if p.parent.name == "checkpoint"] == weights
    before, after = (pd.read_csv(f / "results/tiny/tables/refusal.csv") for f in (finished, folder))
    kept = after[after["measure"].isin(before["measure"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before)
