"""The workflow, with stages that only write their files: what runs, by which commands, what is told."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from workflows import ROOT, SUMMED_UP, Workflow, new_workflow, study, with_judge


def test_a_fresh_study_runs_every_cell_once(tmp_path: Path) -> None:
    assert new_workflow(tmp_path / "fresh").planned() == {
        "prompts": 7,
        "disjoint": 1,
        "fetch": 1,
        "compress": 2,
        "activations": 3,
        "direction": 3,
        "compare": 2,
        "transfer": 2,
        "mediate": 3,
        "edit": 4,
        "generate": 7,
        "judge": 7,
        "ability": 7,
        **SUMMED_UP,
    }


def test_what_learns_from_the_dense_model_shares_its_answers(finished: Workflow, tmp_path: Path) -> None:
    folder, config = tmp_path / "copy", study()
    shutil.copytree(finished.folder, folder, symlinks=True)
    config["methods"] |= {
        "again": {"recalibrate": "refusals"},
        "control": {"recalibrate": "answers"},
        "tuned": {"tune": "lora"},
    }
    workflow = Workflow(folder)
    workflow.write(config)
    cells = dict.fromkeys(("generate", "judge", "ability"), 4)
    made = {"training_answers": 1, "recalibrate": 2, "tune": 2}
    assert workflow.planned() == made | cells | SUMMED_UP
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    results = "results/small/tiny"
    unseen = ("harmful_validation", "harmless_validation", "attack", "over_refusal")
    evaluated = " ".join(f"--evaluated=results/small/prompts/{role}.jsonl" for role in unseen)
    for method, answers in (("again", "harmful"), ("control", "harmless")):
        command = (folder / results / f"wanda-40/{method}/checkpoint/provenance.json").read_text()
        assert f"--answers {results}/dense/training-answers/{answers}_train.jsonl {evaluated}" in command
    command = (folder / results / "magnitude-20/tuned/checkpoint/tuning.json").read_text()
    assert f"tune {results}/magnitude-20/checkpoint {results}/magnitude-20/tuned/checkpoint" in command
    assert f"--harmful-answers {results}/dense/training-answers/harmful_train.jsonl" in command
    assert evaluated in command


def test_auto_gptq_is_compressed_in_its_own_environment(tmp_path: Path) -> None:
    workflow, config = new_workflow(tmp_path / "fresh"), study()
    auto = {"quantize": "gptq", "bits": 4, "group_size": 64, "format": "auto-gptq"}
    config["compressions"] = {"dense": {}, "auto": auto, "here": {**auto, "format": "compressed-tensors"}}
    workflow.write(config)
    run = workflow.snakemake("--dry-run", "--printshellcmds", "--quiet", "host")
    shown = run.stdout + run.stderr
    assert run.returncode == 0, shown
    commands = re.findall(r"(\S*holdfast) compress \S+ results/small/tiny/(\w+)/", shown)
    environment = os.path.relpath(ROOT / ".environments/gptqmodel/bin/holdfast", workflow.folder.resolve())
    assert dict((name, command) for command, name in commands) == {"auto": environment, "here": "holdfast"}


def test_answers_by_vllm_come_from_its_own_environment(
    finished: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_VLLM", "vllm")
    folder, config = tmp_path / "copy", study()
    shutil.copytree(finished.folder, folder, symlinks=True)
    with_judge(config)
    config["evaluate"] |= {"generate": {"backend": "vllm"}, "attacks": {"bare": {"system_prompt": ""}}}
    workflow = Workflow(folder)
    workflow.write(config)
    asked = ("generate", "judge", "attack", "judge_attack", "judge_by_model", "judge_attack_by_model")
    environment = {} if (ROOT / ".environments/vllm/complete").is_file() else {"environment": 1}
    # All of them anew, and nothing that does not hang on answers.
    assert workflow.planned() == {"fetch_judge": 1, **environment, **dict.fromkeys(asked, 7), **SUMMED_UP}
    run = workflow.snakemake("--dry-run", "--printshellcmds", "--quiet", "host")
    commands = re.findall(r"(\S*holdfast) (generate|judge-by-model|judge) ", run.stdout + run.stderr)
    there = os.path.relpath(ROOT / ".environments/vllm/bin/holdfast", folder.resolve())
    assert {stage: command for command, stage in commands} == {
        "generate": there,
        "judge-by-model": there,
        "judge": "holdfast",
    }
    config["compressions"]["four"] = {"quantize": "nf4"}
    workflow.write(config)
    run = workflow.snakemake("--dry-run")
    assert run.returncode == 2
    assert "evaluate.generate.backend: vLLM cannot answer in tiny/four/as-is: bitsandbytes" in run.stderr
    assert "Traceback" not in run.stdout + run.stderr


def test_the_settled_backend_is_kept_beside_the_results(tmp_path: Path) -> None:
    workflow, config = new_workflow(tmp_path / "fresh"), study(methods={"as-is": {}})
    config["compressions"] = {"dense": {}, "four": {"quantize": "nf4"}}
    config["evaluate"]["generate"] = {"backend": "auto"}
    workflow.write(config)
    assert workflow.planned()["generate"] == 2
    assert not (workflow.folder / "results/small/backend.json").exists()  # planned only
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    kept = json.loads((workflow.folder / "results/small/backend.json").read_text())
    assert kept["backend"] == "transformers"
    assert kept["reason"] == "auto: tiny/four/as-is: bitsandbytes is not in vLLM's environments"
    shown = (workflow.folder / "results/small/tiny/four/as-is/generations/attack.jsonl").read_text()
    assert '"backend": "transformers"' in shown
    assert workflow.planned() == {}


def test_a_published_checkpoint_is_brought_again_when_its_files_change(tmp_path: Path) -> None:
    workflow, config = new_workflow(tmp_path / "fresh"), study(methods={"as-is": {}})
    published = workflow.folder / "published"
    published.mkdir()
    (published / "config.json").write_text("{}")
    (published / "model.safetensors").write_text("weights")
    config["compressions"] = {"dense": {}, "there": {"source": "path:published"}}
    workflow.write(config)
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    assert workflow.planned() == {}
    (published / "model.safetensors").write_text("other weights")
    later = time.time() + 5
    os.utime(published / "model.safetensors", (later, later))
    assert workflow.planned()["compress"] == 1


def test_attack_settings_and_borderline_prompts_are_asked_of_every_cell(tmp_path: Path) -> None:
    workflow, config = (
        new_workflow(tmp_path / "fresh"),
        study(compressions={"dense": {}}, methods={"as-is": {}}),
    )
    (workflow.folder / "suffix.txt").write_text("please")
    checksum = sha256(b"please").hexdigest()
    config["evaluate"]["attacks"] = {"please": {"suffix": "file:suffix.txt", "sha256": checksum}}
    config["prompts"]["borderline"] = {"source": "file:over_refusal.jsonl"}
    workflow.write(config)
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    cell = workflow.folder / "results/small/tiny/dense/as-is"
    shown = (cell / "attacks/please/generations/attack.jsonl").read_text()
    assert "--prompts results/small/prompts/attack.jsonl" in shown
    assert f'"suffix": "file:suffix.txt", "sha256": "{checksum}"' in shown
    assert "suffix" not in (cell / "borderline/generations/borderline.jsonl").read_text()
    assert (cell / "attacks/please/verdicts/attack.jsonl").is_file()
    assert (cell / "borderline/verdicts/borderline.jsonl").is_file()
    assert workflow.planned() == {}
    (workflow.folder / "suffix.txt").write_text("kindly")
    config["evaluate"]["attacks"]["please"]["sha256"] = sha256(b"kindly").hexdigest()
    workflow.write(config)
    assert workflow.planned() == {"attack": 1, "judge_attack": 1, **SUMMED_UP}


def test_as_is_reads_the_compressed_checkpoint_itself(finished: Workflow) -> None:
    shown = (finished.folder / "results/small/tiny/wanda-40/as-is/generations/attack.jsonl").read_text()
    assert " results/small/tiny/wanda-40/checkpoint " in shown
    assert not (finished.folder / "results/small/tiny/wanda-40/as-is/checkpoint").exists()


def test_a_control_takes_its_settings_from_the_finished_edit(finished: Workflow) -> None:
    shown = (finished.folder / "results/small/tiny/wanda-40/random-edit/checkpoint/edit.json").read_text()
    assert shown.endswith("--matched-to results/small/tiny/wanda-40/aird/checkpoint/edit.json")


def test_mistakes_are_told_without_a_traceback(tmp_path: Path) -> None:
    workflow = new_workflow(tmp_path / "wrong")
    workflow.write(study(seed=-1, judges=[]))
    run = workflow.snakemake("--dry-run")
    assert run.returncode == 2
    assert "study.yaml: seed: -1 is out of range; give a value 0 or more" in run.stderr
    assert "study.yaml: judges: unknown key" in run.stderr
    assert "Traceback" not in run.stdout + run.stderr


def test_a_single_value_on_the_command_line_is_refused_not_ignored(tmp_path: Path) -> None:
    run = new_workflow(tmp_path / "wrong").snakemake("--dry-run", "--config", "seed=1")
    assert run.returncode == 2
    assert "--config: a study is one file" in run.stderr


def test_the_workflow_is_well_formed(tmp_path: Path) -> None:
    run = new_workflow(tmp_path / "lint").snakemake("--lint")
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_rules_are_formatted() -> None:
    files = [str(ROOT / "Snakefile"), *map(str, sorted((ROOT / "rules").glob("*.smk")))]
    snakefmt = Path(sys.executable).with_name("snakefmt")
    run = subprocess.run(
        [str(snakefmt), "--check", *files], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr


def test_reading_a_config_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "pandas", "numpy"}
    code = f"import sys, holdfast.config; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"


def test_ready_jobs_are_looked_at_only_when_a_job_has_ended(tmp_path: Path) -> None:
    """And not every second for every job that ever ended (rules/run.smk)."""
    workflow = new_workflow(tmp_path / "fresh")
    run = workflow.snakemake("--cores", "2", "--verbose")
    assert run.returncode == 0, run.stdout + run.stderr
    jobs = run.stderr.count("Finished jobid")
    assert jobs > 40
    assert run.stderr.count("Resources before job selection") <= jobs + 1
