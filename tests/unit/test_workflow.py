"""The workflow, with stages that only write their files: what runs, what runs again, what is told."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROLES = [
    "harmful_train",
    "harmful_validation",
    "harmless_train",
    "harmless_validation",
    "attack",
    "over_refusal",
]

# A stage that writes the files its rule declares and computes nothing.
STAGE = """\
import json
import os
import sys
from pathlib import Path

FILES = {
    "fetch": ["provenance.json"], "compress": ["provenance.json"], "edit": ["edit.json", "provenance.json"],
    "instruct": ["provenance.json"], "steer": ["steer.json", "provenance.json"],
    "activations": ["activations.safetensors"], "direction": ["direction.json"], "figures": ["asr.svg"],
    "mediate": ["verdicts.jsonl", "answers.jsonl"],
    "recalibrate": ["provenance.json"], "tune": ["tuning.json", "provenance.json"],
    "discard": ["removed.json"],
    "ability": ["lm_eval.json", "zero_shot.json", "perplexity.json"],
    "tables": ["refusal.csv", "refusal.md", "refusal.tex", "claims.csv", "leaderboard.csv", "costs.csv"],
}
stage, *arguments = sys.argv[1:]
with open("environment.jsonl", "a") as stream:
    switches = {k: os.environ.get(k) for k in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HOLDFAST_OFFLINE")}
    print(json.dumps({"stage": stage} | switches), file=stream)
if Path("broken").exists() and Path("broken").read_text() in " ".join(sys.argv):
    sys.exit(1)
FILES["generate"] = FILES["judge"] = [Path(a).name for a in arguments if a.endswith(".jsonl")]
FILES["judge-by-model"] = FILES["judge"]
options = [i for i, a in enumerate(arguments) if a.startswith("--")] or [len(arguments)]
out = Path(arguments[options[0] - 1])
out.parent.mkdir(parents=True, exist_ok=True)
for name in FILES.get(stage, []):
    out.mkdir(exist_ok=True)
    (out / name).unlink(missing_ok=True)
    (out / name).write_text(" ".join(sys.argv))
if stage in ("compress", "edit", "instruct", "steer"):  # copies of checkpoints share files with their source
    for file in Path(arguments[0]).iterdir():
        if not (out / file.name).exists():
            os.link(file, out / file.name)
if stage not in FILES:
    out.write_text(" ".join(sys.argv))
if stage == "compare":
    Path(arguments[arguments.index("--table") + 1]).write_text(" ".join(sys.argv))
"""


def study(**changes: object) -> dict[str, object]:
    """A small study on files of the working directory."""
    return {
        "study": "small",
        "models": {"tiny": {"source": "path:model", "dtype": "float32"}},
        "compressions": {
            "dense": {},
            "magnitude-20": {"prune": "magnitude", "sparsity": 0.2},
            "wanda-40": {"prune": "wanda", "sparsity": 0.4},
        },
        "methods": {
            "as-is": {},
            "aird": {"edit": "aird"},
            "random-edit": {"edit": "aird", "direction": "random", "matched_to": "aird"},
        },
        "calibration": {"source": "file:calibration.jsonl", "samples": 2, "tokens": 8},
        "prompts": {role: {"source": f"file:{role}.jsonl"} for role in ROLES},
        "evaluate": {
            "judges": ["arditi-12"],
            "judge_models": {"unused": {"judge": "harmbench", "source": "path:model"}},
            "zero_shot": {"tasks": ["holdfast_choice"]},
            "perplexity": {"source": "file:heldout.txt", "window": 16},
        },
        **changes,
    }


class Workflow:
    """A working directory with a study, and Snakemake run in it."""

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        self.folder, self.root = folder, root

    def write(self, config: dict[str, object]) -> None:
        (self.folder / "study.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def command(self, configfile: str) -> list[str]:
        # The interpreter beside the stand-in stages is the one Snakemake runs in: it finds them first.
        command = [
            str(self.folder / "bin/python"),
            "-m",
            "snakemake",
            "--snakefile",
            str(self.root / "Snakefile"),
        ]
        return [*command, "--configfile", configfile]

    def paths(self) -> str:
        """PYTHONPATH of that interpreter."""
        return os.pathsep.join(
            [*(p for p in sys.path if p.endswith("site-packages")), str(self.root / "workflow")]
        )

    def snakemake(self, *arguments: str, configfile: str = "study.yaml") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command(configfile), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "PYTHONPATH": self.paths()},
        )

    def planned(self) -> dict[str, int]:
        """The jobs of the next run, by rule."""
        run = self.snakemake("--dry-run", "--quiet", "rules", "host", "reason")
        assert run.returncode == 0, run.stdout + run.stderr
        if "Nothing to be done" in run.stdout + run.stderr:
            return {}
        counts = dict(
            re.findall(r"^(\w+) +(\d+)$", (run.stdout + run.stderr).rsplit("Job stats:", 1)[1], re.M)
        )
        del counts["total"]
        return {rule: int(count) for rule, count in counts.items()}


def new_workflow(folder: Path) -> Workflow:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(Path(sys.executable).resolve())
    (folder / "bin/holdfast").write_text(f"#!{folder}/bin/python\n{STAGE}")
    (folder / "bin/holdfast").chmod(0o755)
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text("{}")
    for role in [*ROLES, "calibration"]:
        (folder / f"{role}.jsonl").write_text(json.dumps({"id": role, "text": role}) + "\n")
    (folder / "heldout.txt").write_text("text")
    workflow = Workflow(folder)
    workflow.write(study())
    return workflow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A whole study, run once."""
    workflow = new_workflow(tmp_path_factory.mktemp("workflow") / "finished")
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Report: results/small/report/index.html" in run.stdout + run.stderr
    return workflow


@pytest.fixture
def rerun(finished: Workflow, tmp_path: Path) -> Callable[..., dict[str, int]]:
    """The jobs planned in a copy of the finished study after a change of its config."""

    def planned(change: Callable[[dict], None]) -> dict[str, int]:
        folder = tmp_path / "copy"
        shutil.copytree(finished.folder, folder, symlinks=True)
        config = study()
        change(config)
        workflow = Workflow(folder)
        workflow.write(config)
        return workflow.planned()

    return planned


SUMMED_UP = {"tables": 1, "figures": 1, "report": 1, "all": 1}


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


def test_no_change_runs_nothing(rerun: Callable[..., dict[str, int]]) -> None:
    assert rerun(lambda config: None) == {}


def test_the_same_study_with_comments_and_defaults_runs_nothing(rerun: Callable[..., dict[str, int]]) -> None:
    assert rerun(lambda config: config.update(seed=0, search={"alphas": [2, 4, 8]})) == {}


BROKEN = "edit results/small/tiny/wanda-40/checkpoint results/small/tiny/wanda-40/aird/"


@pytest.fixture
def broken(finished: Workflow, tmp_path: Path) -> Workflow:
    """The finished study run again with another strength, whose edit of one compression fails."""
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    workflow, config = Workflow(tmp_path / "copy"), study()
    config["methods"]["aird"]["alpha"] = 3
    workflow.write(config)
    (workflow.folder / "broken").write_text(BROKEN)
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "missing cells marked: results/small/tables, results/small/report/index.html" in run.stderr
    (workflow.folder / "broken").unlink()
    return workflow


def test_a_failed_job_leaves_the_rest_done_and_tables_with_gaps(broken: Workflow) -> None:
    results = broken.folder / "results/small"
    left = json.loads((results / "logs/undone.json").read_text())
    waiting = {"edit", "generate", "judge", "ability"}
    cells = {tuple(job["cell"]) for job in left if job["stage"] in waiting}
    assert cells == {("tiny", "wanda-40", "aird"), ("tiny", "wanda-40", "random-edit")}
    assert len([job for job in left if job["stage"] in waiting]) == 8
    assert {stage for job in left for stage in job["failed"]} == {"edit"}
    # Made by the run before, from the edit that is no more.
    stale = "tiny/wanda-40/aird/generations/attack.jsonl"
    assert (results / stale).is_file()
    assert stale in [file for job in left for file in job["files"]]
    for written in ("tables/refusal.csv", "figures/asr.svg", "report/index.html"):
        assert "results/small" in (results / written).read_text()
    assert "--undone results/small/logs/undone.json" in (results / "tables/refusal.csv").read_text()
    done = {path.parts[-4] for path in results.glob("tiny/*/aird/ability/perplexity.json")}
    assert done == {"magnitude-20", "wanda-40"}


def test_the_next_run_makes_what_is_missing_and_the_tables(broken: Workflow) -> None:
    cells = dict.fromkeys(("edit", "generate", "judge", "ability"), 2)
    assert broken.planned() == {**cells, **SUMMED_UP}
    run = broken.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "--undone" not in (broken.folder / "results/small/tables/refusal.csv").read_text()
    assert broken.planned() == {}


def test_tables_with_gaps_are_made_again_when_the_missing_cells_are_given_up(
    finished: Workflow, tmp_path: Path
) -> None:
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    workflow, config = Workflow(tmp_path / "copy"), study()
    config["compressions"]["rtn"] = {"quantize": "rtn", "bits": 4, "group_size": 64}
    workflow.write(config)
    (workflow.folder / "broken").write_text("compress results/small/tiny/dense/checkpoint")
    assert workflow.snakemake("--cores", "2", "--quiet", "all").returncode == 1
    (workflow.folder / "broken").unlink()
    workflow.write(study())  # as it was finished: the same files, as old and with the same contents
    assert workflow.planned() == SUMMED_UP


def test_tables_that_fail_themselves_are_no_gap(finished: Workflow, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    workflow = Workflow(tmp_path / "copy")
    (workflow.folder / "results/small/tables/refusal.csv").unlink()
    (workflow.folder / "broken").write_text("holdfast tables")
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 1
    assert not (workflow.folder / "results/small/logs/undone.json").exists()


def test_a_new_compression_runs_only_its_cells(rerun: Callable[..., dict[str, int]]) -> None:
    jobs = rerun(lambda c: c["compressions"].update(rtn={"quantize": "rtn", "bits": 4, "group_size": 64}))
    one = dict.fromkeys(("compress", "activations", "direction", "compare", "transfer", "mediate"), 1)
    assert jobs == {**one, "edit": 2, "generate": 3, "judge": 3, "ability": 3, **SUMMED_UP}


def test_a_new_model_runs_only_its_cells(rerun: Callable[..., dict[str, int]]) -> None:
    jobs = rerun(lambda c: c["models"].update(other={"source": "path:model", "dtype": "bfloat16"}))
    of_model = dict.fromkeys(("activations", "direction", "mediate"), 3)
    of_compressed = dict.fromkeys(("compress", "compare", "transfer"), 2)
    cells = dict.fromkeys(("generate", "judge", "ability"), 7)
    assert jobs == {"fetch": 1, **of_model, **of_compressed, "edit": 4, **cells, **SUMMED_UP}


def test_a_new_zero_shot_task_measures_ability_alone(rerun: Callable[..., dict[str, int]]) -> None:
    """That it measures the new task alone: test_ability.py."""
    jobs = rerun(lambda c: c["evaluate"]["zero_shot"].update(tasks=["holdfast_choice", "boolq"]))
    assert jobs == {"download": 1, "disjoint": 1, "ability": 7, **SUMMED_UP}


def test_leaving_the_transfer_out_changes_the_tables_alone(rerun: Callable[..., dict[str, int]]) -> None:
    assert rerun(lambda c: c["evaluate"].update(transfer={"nulls": 0})) == SUMMED_UP


def test_another_recipe_runs_the_cells_that_follow_from_it(rerun: Callable[..., dict[str, int]]) -> None:
    jobs = rerun(lambda c: c["compressions"]["magnitude-20"].update(sparsity=0.25))
    one = dict.fromkeys(("compress", "activations", "direction", "compare", "transfer", "mediate"), 1)
    assert jobs == {**one, "edit": 2, "generate": 3, "judge": 3, "ability": 3, **SUMMED_UP}


def test_a_comment_in_rules_or_code_runs_nothing(finished: Workflow, tmp_path: Path) -> None:
    there = tmp_path / "clone"
    for name in ("rules", "workflow", "profiles", "envs"):
        shutil.copytree(ROOT / name, there / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "pyproject.toml"):
        shutil.copy(ROOT / name, there / name)
    for file in [there / "Snakefile", *(there / "rules").glob("*.smk"), *(there / "workflow").rglob("*.py")]:
        file.write_text(file.read_text() + "\n# A comment.\n")
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    assert Workflow(tmp_path / "copy", root=there).planned() == {}


def test_a_new_method_runs_only_its_cells(rerun: Callable[..., dict[str, int]]) -> None:
    jobs = rerun(lambda c: c["methods"].update(amplify={"edit": "aird", "variant": "amplify", "alpha": 3}))
    assert jobs == {"edit": 2, "generate": 2, "judge": 2, "ability": 2, **SUMMED_UP}


def with_judge(config: dict) -> None:
    guard = {"judge": "wildguard", "source": "path:model"}
    config["evaluate"] |= {"judge_models": {"guard": guard}, "judges": ["guard", "arditi-12"]}


def test_a_new_model_judge_is_fetched_and_judges_what_is_there(rerun: Callable[..., dict[str, int]]) -> None:
    assert rerun(with_judge) == {"fetch_judge": 1, "judge_by_model": 7, **SUMMED_UP}


def test_a_model_judge_judges_attack_settings_too(rerun: Callable[..., dict[str, int]]) -> None:
    def attacked(config: dict) -> None:
        with_judge(config)
        config["evaluate"]["attacks"] = {"bare": {"system_prompt": ""}}

    asked = dict.fromkeys(("attack", "judge_attack", "judge_by_model", "judge_attack_by_model"), 7)
    assert rerun(attacked) == {"fetch_judge": 1, **asked, **SUMMED_UP}


def test_rivals_of_the_edit_run_by_their_own_rules(rerun: Callable[..., dict[str, int]]) -> None:
    rivals = {
        "prompted": {"system_prompt": "Be safe."},
        "steered": {"steer": "dense"},
        "random-steer": {"steer": "random", "matched_to": "steered"},
    }
    jobs = rerun(lambda c: c["methods"].update(rivals))
    cells = dict.fromkeys(("generate", "judge", "ability"), 6)
    assert jobs == {"instruct": 2, "steer": 4, **cells, **SUMMED_UP}


def test_a_new_strength_runs_the_edit_and_its_control(rerun: Callable[..., dict[str, int]]) -> None:
    jobs = rerun(lambda c: c["methods"]["aird"].update(alpha=3))
    assert jobs == {"edit": 4, "generate": 4, "judge": 4, "ability": 4, **SUMMED_UP}


def without_checkpoints(config: dict) -> None:
    config["keep_checkpoints"] = False


def test_removing_checkpoints_removes_each_once_all_that_uses_it_is_there(
    finished: Workflow, tmp_path: Path
) -> None:
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    workflow, config = Workflow(tmp_path / "copy"), study()
    without_checkpoints(config)
    workflow.write(config)
    assert workflow.planned() == {"discard": 4, "discard_compressed": 2, "all": 1}
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    assert workflow.planned() == {}
    config["methods"]["amplify"] = {"edit": "aird", "variant": "amplify", "alpha": 3}
    workflow.write(config)
    cells = dict.fromkeys(("edit", "generate", "judge", "ability", "discard"), 2)
    assert workflow.planned() == {**cells, "discard_compressed": 2, **SUMMED_UP}
    config["evaluate"]["attacks"] = {"opened": {"prefix": "Sure, here is"}}
    del config["methods"]["amplify"]
    workflow.write(config)
    asked = {"attack": 7, "judge_attack": 7, "discard": 4, "discard_compressed": 2}
    assert workflow.planned() == {**asked, **SUMMED_UP}


def test_a_checkpoint_is_removed_after_its_last_user(tmp_path: Path) -> None:
    workflow, config = new_workflow(tmp_path / "fresh"), study()
    without_checkpoints(config)
    workflow.write(config)
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    model = workflow.folder / "results/small/tiny"
    for compression in ("magnitude-20", "wanda-40"):
        removed = (model / compression / "checkpoint/removed.json").stat().st_mtime_ns
        used = [
            *(model / compression).glob("*/ability/*.json"),
            *(model / compression).glob("*/generations/*"),
        ]
        used += [
            *(model / compression).glob("*/checkpoint/provenance.json"),
            model / compression / "transfer.json",
        ]
        assert len(used) > 10
        assert removed >= max(file.stat().st_mtime_ns for file in used)
    assert not (model / "dense/checkpoint/removed.json").exists()


def test_new_calibration_compresses_only_what_is_calibrated(rerun: Callable[..., dict[str, int]]) -> None:
    jobs = rerun(lambda c: c["calibration"].update(samples=1))
    one = dict.fromkeys(("compress", "activations", "direction", "compare", "transfer", "mediate"), 1)
    cells = dict.fromkeys(("generate", "judge", "ability"), 3)
    assert jobs == {"prompts": 1, "disjoint": 1, **one, "edit": 2, **cells, **SUMMED_UP}


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


def test_a_new_attack_setting_runs_alone(rerun: Callable[..., dict[str, int]]) -> None:
    attacks = {"opened": {"prefix": "Sure, here is"}, "hot": {"temperature": 1.0, "samples": 3}}
    jobs = rerun(lambda c: c["evaluate"].update(attacks=attacks))
    assert jobs == {"attack": 14, "judge_attack": 14, **SUMMED_UP}


def test_borderline_prompts_run_alone(rerun: Callable[..., dict[str, int]]) -> None:
    jobs = rerun(lambda c: c["prompts"].update(borderline={"source": "file:over_refusal.jsonl", "limit": 1}))
    assert jobs == {"prompts": 1, "disjoint": 1, "borderline": 7, "judge_borderline": 7, **SUMMED_UP}


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


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def of_the_hub(config: dict) -> None:
    """Everything that can come from the hub does."""
    hub = {"source": f"hub:tests/data@{COMMIT}", "split": "test"}
    config["models"]["tiny"]["source"] = f"hub:tests/tiny@{COMMIT}"
    config["compressions"] = {"dense": {}, "there": {"source": f"hub:tests/quantized@{COMMIT}"}}
    config["methods"] = {"as-is": {}}
    config["prompts"]["attack"] = hub
    with_judge(config)
    config["evaluate"]["judge_models"]["guard"]["source"] = f"hub:tests/guard@{COMMIT}"
    config["evaluate"]["perplexity"] = {**hub, "window": 16}
    config["evaluate"]["zero_shot"]["tasks"] = ["boolq", "holdfast_choice"]


@pytest.fixture
def from_hub(tmp_path: Path) -> Workflow:
    workflow, config = new_workflow(tmp_path / "fresh"), study()
    of_the_hub(config)
    workflow.write(config)
    return workflow


def test_what_comes_from_the_hub_is_brought_by_local_rules_before_all_else(from_hub: Workflow) -> None:
    run = from_hub.snakemake("--dry-run", "--quiet", "host")
    shown = run.stdout + run.stderr
    assert run.returncode == 0, shown
    brought = dict(
        re.findall(r"holdfast download results/small/downloads/(\S+)\.json --recipe \'(.*?)\'", shown)
    )
    sources = {
        f"tests--{name}@{COMMIT}": f"hub:tests/{name}@{COMMIT}" for name in ("tiny", "quantized", "guard")
    }
    assert {k: json.loads(v).get("source") for k, v in brought.items()} == {
        **sources,
        "zero-shot-tasks": None,
    }
    assert json.loads(brought["zero-shot-tasks"])["tasks"] == ["boolq"]
    rules = dict(re.findall(r"^rule (\w+):\n(.*?)(?=^\S)", rules_text(), re.M | re.S))
    assert [
        name for name in ("download", "prompts", "held_out") if "localrule: True" not in rules[name]
    ] == []
    assert "localrule" not in rules["fetch"]


def rules_text() -> str:
    return "".join(file.read_text() + "#\n" for file in sorted((ROOT / "rules").glob("*.smk")))


def test_jobs_run_with_the_hub_switched_off_and_downloads_with_the_users_switches(from_hub: Workflow) -> None:
    run = from_hub.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    lines = (from_hub.folder / "environment.jsonl").read_text().splitlines()
    seen = [json.loads(line) for line in lines]
    assert {"download", "text", "fetch", "compress", "generate", "ability"} <= {s["stage"] for s in seen}
    assert {(s["HF_HUB_OFFLINE"], s["HF_DATASETS_OFFLINE"]) for s in seen} == {("1", "1")}
    # The commands that download read this one (holdfast.hub.switch_back).
    assert {s["HOLDFAST_OFFLINE"] for s in seen} == {os.environ.get("HF_HUB_OFFLINE", "")}
    results = from_hub.folder / "results/small"
    text = '"perplexity": {"source": "file:results/small/prompts/held_out.txt", "window": 16}'
    assert text in (results / "tiny/dense/as-is/ability/perplexity.json").read_text()
    assert f'"hub:tests/data@{COMMIT}"' in (results / "prompts/held_out.txt").read_text()
    assert '"held_out": {"source": "file:results' in (results / "prompts/disjoint.json").read_text()
    assert from_hub.planned() == {}


def test_another_revision_is_downloaded_and_fetched(from_hub: Workflow) -> None:
    run = from_hub.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    config = study()
    of_the_hub(config)
    config["compressions"]["there"]["source"] = "hub:tests/quantized@" + COMMIT[::-1]
    from_hub.write(config)
    one = dict.fromkeys(("activations", "direction", "compare", "transfer", "mediate"), 1)
    cell = dict.fromkeys(("generate", "judge", "judge_by_model", "ability"), 1)
    assert from_hub.planned() == {"download": 1, "compress": 1, **one, **cell, **SUMMED_UP}


def test_a_new_task_limit_measures_ability_alone(rerun: Callable[..., dict[str, int]]) -> None:
    assert rerun(lambda c: c["evaluate"]["zero_shot"].update(limit=5)) == {"ability": 7, **SUMMED_UP}


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
