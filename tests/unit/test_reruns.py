"""What the workflow runs again after a change: those cells and the tables, and nothing else."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from workflows import ROOT, SUMMED_UP, Workflow, new_workflow, study, with_judge


def test_no_change_runs_nothing(rerun: Callable[..., dict[str, int]]) -> None:
    assert rerun(lambda config: None) == {}


def test_the_same_study_with_comments_and_defaults_runs_nothing(rerun: Callable[..., dict[str, int]]) -> None:
    assert rerun(lambda config: config.update(seed=0, search={"alphas": [2, 4, 8]})) == {}


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


def test_new_calibration_compresses_only_what_is_calibrated(rerun: Callable[..., dict[str, int]]) -> None:
    jobs = rerun(lambda c: c["calibration"].update(samples=1))
    one = dict.fromkeys(("compress", "activations", "direction", "compare", "transfer", "mediate"), 1)
    cells = dict.fromkeys(("generate", "judge", "ability"), 3)
    assert jobs == {"prompts": 1, "disjoint": 1, **one, "edit": 2, **cells, **SUMMED_UP}


def test_leaving_the_transfer_out_changes_the_tables_alone(rerun: Callable[..., dict[str, int]]) -> None:
    assert rerun(lambda c: c["evaluate"].update(transfer={"nulls": 0})) == SUMMED_UP


def test_a_new_attack_setting_runs_alone(rerun: Callable[..., dict[str, int]]) -> None:
    attacks = {"opened": {"prefix": "Sure, here is"}, "hot": {"temperature": 1.0, "samples": 3}}
    jobs = rerun(lambda c: c["evaluate"].update(attacks=attacks))
    assert jobs == {"attack": 14, "judge_attack": 14, **SUMMED_UP}


def test_borderline_prompts_run_alone(rerun: Callable[..., dict[str, int]]) -> None:
    jobs = rerun(lambda c: c["prompts"].update(borderline={"source": "file:over_refusal.jsonl", "limit": 1}))
    assert jobs == {"prompts": 1, "disjoint": 1, "borderline": 7, "judge_borderline": 7, **SUMMED_UP}


def test_pairs_run_alone(rerun: Callable[..., dict[str, int]]) -> None:
    jobs = rerun(lambda c: c.update(pairs={"limit": 1}))
    asked = {"pairs": 1, "answer_pairs": 7, "judge_pairs": 7}
    assert jobs == {**asked, "image_use": 3, **SUMMED_UP}


def test_pairs_without_images_ask_nothing_of_images(rerun: Callable[..., dict[str, int]]) -> None:
    jobs = rerun(lambda c: c.update(pairs={"modality": ["text"]}))
    assert jobs == {"pairs": 1, "answer_pairs": 7, "judge_pairs": 7, **SUMMED_UP}


def test_questions_about_images_run_alone(rerun: Callable[..., dict[str, int]]) -> None:
    jobs = rerun(lambda c: c["evaluate"].update(visual={"benchmark": "embedded-scenes", "limit": 4}))
    assert jobs == {"visual": 1, "answer_visual": 7, "score_visual": 7, **SUMMED_UP}


def test_a_changed_picture_beside_a_file_of_questions_asks_them_again(
    finished: Workflow, tmp_path: Path
) -> None:
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    workflow, pictures = Workflow(tmp_path / "copy"), tmp_path / "copy/asked/pictures"
    pictures.mkdir(parents=True)
    rows = [{"question": "What?", "image": f"pictures/{n}.png", "answer": "that"} for n in range(2)]
    (pictures.parent / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (pictures / "0.png").write_bytes(b"0")
    (pictures / "unnamed.png").write_bytes(b"0")
    given = {"visual": {"source": "file:asked/questions.jsonl"}}
    workflow.write(study(evaluate=study()["evaluate"] | given))
    asked = "results/small/visual/visual.jsonl"
    ran = workflow.snakemake("--cores", "1", "--quiet", "all", "--", asked)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for name, again in (("unnamed", False), ("1", True)):
        (pictures / f"{name}.png").write_bytes(b"new")
        planned = workflow.snakemake("--dry-run", "--", asked)
        assert planned.returncode == 0, planned.stderr
        assert ("Nothing to be done" in planned.stdout + planned.stderr) != again, name


def test_directions_by_modality_run_alone(rerun: Callable[..., dict[str, int]]) -> None:
    jobs = rerun(lambda c: c.update(pairs={"limit": 1}, modalities={"nulls": 3}))
    asked = {"pairs": 1, "answer_pairs": 7, "judge_pairs": 7, "image_use": 3}
    assert jobs == {**asked, "draw_prompts": 1, "modalities": 3, **SUMMED_UP}


def test_directions_learnt_on_words_draw_no_prompts(rerun: Callable[..., dict[str, int]]) -> None:
    words = {"pairs": {"limit": 1}, "modalities": {"learnt_on": "embedded-words"}}
    jobs = rerun(lambda c: c.update(words))
    assert (jobs["draw_prompts"], jobs["modalities"]) == (1, 3)


def test_a_new_task_limit_measures_ability_alone(rerun: Callable[..., dict[str, int]]) -> None:
    assert rerun(lambda c: c["evaluate"]["zero_shot"].update(limit=5)) == {"ability": 7, **SUMMED_UP}


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


class Job(NamedTuple):
    rule: str
    input: set[str]
    output: set[str]


def listed(told: str) -> list[Job]:
    """The jobs that Snakemake lists when it plans."""
    found = []
    for block in re.split(r"^(?:local)?rule ", told, flags=re.MULTILINE)[1:]:
        files = [re.search(rf"^    {kind}: (.*)$", block, re.MULTILINE) for kind in ("input", "output")]
        given, made = (set(match[1].split(", ")) if match else set() for match in files)
        found.append(Job(block.partition(":")[0], given, made))
    return found


def test_whatever_reads_a_checkpoint_comes_before_its_removal(tmp_path: Path) -> None:
    workflow, config = new_workflow(tmp_path / "fresh"), study()
    without_checkpoints(config)
    config.update(pairs={"limit": 1}, modalities={"nulls": 3})
    asked = {
        "attacks": {"opened": {"prefix": "Sure"}},
        "visual": {"benchmark": "embedded-scenes", "limit": 4},
    }
    workflow.write(config | {"evaluate": config["evaluate"] | asked})
    planned = workflow.snakemake("--dry-run")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    jobs = listed(planned.stdout + planned.stderr)
    made_by = {file: job for job in jobs for file in job.output}

    def before(job: Job, found: list[Job]) -> list[Job]:
        for earlier in (made_by[file] for file in job.input if file in made_by):
            if earlier not in found:
                found.append(earlier)
                before(earlier, found)
        return found

    removals = [job for job in jobs if job.rule.startswith("discard")]
    assert len(removals) == 6
    for removal in removals:
        [record] = removal.output
        checkpoint = record.replace("removed.json", "provenance.json")
        readers = [j for j in jobs if checkpoint in j.input and not j.rule.startswith("discard")]
        assert len(readers) >= 3
        waited_for = before(removal, [])
        assert [reader.rule for reader in readers if reader not in waited_for] == []
