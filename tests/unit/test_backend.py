"""Which backend answers a study: by name or settled once, kept beside the results, never two in one table."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from good_study import GOOD, seeing
from holdfast.cli.study import check
from holdfast.cluster import site
from holdfast.config import Study, backend
from holdfast.config.backend import Choice, answered_by, record, settled
from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_json, write_jsonl
from holdfast.report.collect import collect

Load = Callable[[dict[str, Any]], Study]
ALL_SERVED = {"dense": {}, "wanda-40": {"prune": "wanda", "sparsity": 0.4}}


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, AVX-512, no environment named."""
    monkeypatch.setattr(backend, "has_gpus", lambda: False)
    monkeypatch.setattr(backend, "has_avx512", lambda: True)
    monkeypatch.delenv("HOLDFAST_VLLM", raising=False)


@pytest.fixture
def environments(tmp_path: Path) -> Path:
    """vLLM for CPUs is made, vLLM for GPUs is not."""
    folder = tmp_path / "environments"
    (folder / "vllm-cpu").mkdir(parents=True)
    (folder / "vllm-cpu/complete").touch()
    return folder


def asking(name: str, **changes: Any) -> dict[str, Any]:
    config = copy.deepcopy(GOOD) | {"compressions": ALL_SERVED} | changes
    config["evaluate"]["generate"] = {"backend": name}
    return config


def test_a_study_that_says_nothing_is_answered_by_transformers(load: Load, environments: Path) -> None:
    assert settled(load(GOOD), Path("results"), environments).backend == "transformers"


def test_pairs_with_images_are_answered_as_text_is(load: Load, environments: Path) -> None:
    for name in ("auto", "vllm"):
        pictured = load(seeing(asking(name, pairs={"limit": 2})))
        assert settled(pictured, Path("results"), environments).backend == "vllm"


def test_auto_takes_what_is_there_and_faster(
    load: Load, environments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load(asking("auto"))
    chosen = settled(study, Path("results"), environments)
    assert (chosen.backend, chosen.environment) == ("vllm", "vllm-cpu")
    assert (
        chosen.told()
        == "answers by vllm in .environments/vllm-cpu (auto: faster on text, on a CPU with AVX-512)"
    )
    monkeypatch.setattr(backend, "has_avx512", lambda: False)
    chosen = settled(study, Path("results"), environments)
    assert chosen == Choice("transformers", None, "auto: faster than vLLM on text, on a CPU without AVX-512")
    monkeypatch.setattr(backend, "has_gpus", lambda: True)
    assert "no environment vllm," in settled(study, Path("results"), environments).reason
    (environments / "vllm").mkdir()
    (environments / "vllm/complete").touch()
    assert settled(study, Path("results"), environments).environment == "vllm"
    assert settled(study, Path("results"), environments, gpus=False).backend == "transformers"
    monkeypatch.setattr(backend, "has_gpus", lambda: False)
    monkeypatch.setattr(backend, "has_avx512", lambda: False)
    of_cluster = settled(study, Path("results"), environments, gpus=True)  # asked on a login node without any
    assert of_cluster == Choice("vllm", "vllm", "auto: jobs have GPUs")
    monkeypatch.setenv("HOLDFAST_VLLM", "vllm")
    assert settled(study, Path("results"), environments).environment == "vllm"


def test_with_the_profile_the_site_file_says_whether_jobs_have_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(site, "_PROFILES", [])
    (tmp_path / "slurm").mkdir()
    assert not site.profiled()
    for memory, said in ((0, False), (80, True)):
        (tmp_path / "slurm/site.yaml").write_text(f"gpu_memory_gb: {memory}\npartitions: {{}}\n")
        assert site.jobs_have_gpus(submitted=False) is None
        assert site.jobs_have_gpus(submitted=True) is said
    site.settings()  # as profiles/slurm/config.yaml does
    assert site.profiled()


def test_what_was_settled_stays_on_other_machines(
    load: Load, environments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, results = load(asking("auto")), tmp_path / "results"
    record(settled(study, results, environments), results)
    monkeypatch.setattr(backend, "has_avx512", lambda: False)
    monkeypatch.setattr(backend, "has_gpus", lambda: True)
    shutil.rmtree(environments)
    assert settled(study, results, environments).environment == "vllm-cpu"
    named = load(asking("vllm"))
    assert settled(named, results, environments).environment == "vllm-cpu"
    (results / "backend.json").unlink()
    assert settled(study, results, environments).backend == "transformers"
    assert settled(named, results, environments).environment == "vllm"


def test_a_job_goes_by_the_record_alone(
    load: Load, environments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, results = load(asking("auto")), tmp_path / "results"
    monkeypatch.setenv("HOLDFAST_VLLM", "vllm-cpu")  # jobs have the environment of the run
    monkeypatch.setattr(backend, "has_avx512", lambda: False)
    with pytest.raises(HoldfastError, match=r"backend\.json: not here, though the run has settled"):
        settled(study, results, environments, of_a_job=True)
    chosen = settled(study, results, environments)
    assert chosen.backend == "transformers"
    record(chosen, results)
    monkeypatch.setattr(backend, "has_avx512", lambda: True)  # this node would choose otherwise
    assert settled(study, results, environments).backend == "vllm"
    assert settled(study, results, environments, of_a_job=True) == chosen
    assert settled(load(GOOD), results, environments, of_a_job=True).reason == "as the config says"


def test_no_record_where_the_config_alone_decides(load: Load, environments: Path, tmp_path: Path) -> None:
    record(settled(load(asking("transformers")), tmp_path, environments), tmp_path)
    assert not (tmp_path / "backend.json").exists()


def test_a_damaged_record_is_one_line(load: Load, environments: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "backend.json", {"backend": "abacus"})
    with pytest.raises(HoldfastError, match=r"backend\.json: backend does not fit .*; delete it"):
        settled(load(asking("auto")), tmp_path, environments)


UNSERVED = {
    "int8": ({"quantize": "llm-int8"}, "bitsandbytes is not in vLLM's environments"),
    "nf4": ({"quantize": "nf4"}, "bitsandbytes is not in vLLM's environments"),
    "w3": ({"quantize": "rtn", "bits": 3, "group_size": 64}, r"\(vllm-cpu\) read no weights of 3 bits"),
    "w8": ({"quantize": "gptq", "bits": 8, "group_size": 64}, r"\(vllm-cpu\) read no weights of 8 bits"),
    "static": ({"quantize": "fp8", "activations": "static"}, "no static FP8"),
}


@pytest.mark.parametrize("name", UNSERVED)
def test_what_vllm_cannot_answer_is_a_mistake_by_name_and_transformers_by_auto(
    load: Load, environments: Path, name: str
) -> None:
    section, why = UNSERVED[name]
    compressions = {**ALL_SERVED, name: section}
    with pytest.raises(HoldfastError, match=rf"cannot answer in one/{name}/as-is: .*{why}; use transformers"):
        settled(load(asking("vllm", compressions=compressions)), Path("results"), environments)
    chosen = settled(load(asking("auto", compressions=compressions)), Path("results"), environments)
    assert chosen.backend == "transformers"
    assert chosen.reason.startswith(f"auto: one/{name}/as-is: ")


def test_gpus_serve_what_the_build_for_cpus_does_not(
    load: Load, environments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_VLLM", "vllm")
    compressions = {**ALL_SERVED, **{name: UNSERVED[name][0] for name in ("w8", "static")}}
    study = load(asking("vllm", compressions=compressions))
    assert settled(study, Path("results"), environments) == Choice("vllm", "vllm", "as the config says")
    monkeypatch.setenv("HOLDFAST_VLLM", "gpu")
    with pytest.raises(HoldfastError, match="HOLDFAST_VLLM: 'gpu' is no environment of vLLM"):
        settled(study, Path("results"), environments)


def test_a_steered_cell_keeps_the_whole_study_with_transformers(load: Load, environments: Path) -> None:
    methods = {"as-is": {}, "steer": {"steer": "dense"}}
    chosen = settled(load(asking("auto", methods=methods)), Path("results"), environments)
    assert chosen.reason == "auto: one/wanda-40/steer: it is steered at run time"


def drawing(name: str, temperature: float) -> dict[str, Any]:
    config = asking(name)
    config["evaluate"]["attacks"] = {"drawn": {"temperature": temperature}}
    return config


def test_a_temperature_that_vllm_does_not_draw_at_is_told_before_the_run(
    load: Load, environments: Path
) -> None:
    for temperature in (0.01, 2.0):
        chosen = settled(load(drawing("vllm", temperature)), Path("results"), environments)
        assert chosen.backend == "vllm"
    why = "evaluate.attacks.drawn: vLLM draws at temperatures from 0.01 to 2"
    for temperature in (0.001, 2.5):
        with pytest.raises(HoldfastError, match=rf"cannot answer in {why}; use transformers .*, or auto$"):
            settled(load(drawing("vllm", temperature)), Path("results"), environments)
        chosen = settled(load(drawing("auto", temperature)), Path("results"), environments)
        assert chosen == Choice("transformers", None, f"auto: {why}")


def test_the_backend_stands_in_every_recipe_of_answers(load: Load) -> None:
    config = asking("auto")
    config["evaluate"] |= {"judge_models": {"guard": {"judge": "wildguard", "source": "hub:a/b@c"}}}
    config["evaluate"]["judges"] = ["arditi-12", "guard"]
    study = load(config)
    for name in ("vllm", "transformers"):
        of = answered_by(study, name)
        assert of.recipe("generate")["backend"] == name
        asked = of.recipe("judge-by-model", judge="guard")
        assert asked.get("backend", "transformers") == name
    # Verdicts made before there was a choice stay good.
    assert "backend" not in answered_by(study, "transformers").recipe("judge-by-model", judge="guard")


def test_check_tells_the_backend(
    load: Load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(GOOD)
    check(Path("study.yaml"))
    assert capsys.readouterr().out.splitlines()[-1] == "answers by transformers (as the config says)"


def test_answers_of_two_backends_are_not_put_into_one_table(results: Path) -> None:
    cells = [tuple(p.relative_to(results).parts[:3]) for p in sorted(results.glob("*/*/*/generations"))]
    assert len(cells) > 1
    for number, cell in enumerate(cells):
        recipe = {"backend": "vllm"} if number else {}  # of older answers: transformers
        write_json(results.joinpath(*cell, "generations/provenance.json"), {"recipe": recipe})
    first = "/".join(cells[0])
    with pytest.raises(HoldfastError, match=f"answers of two backends: vllm in .*, transformers in {first}"):
        collect(results, cells, ["arditi-12"])
    record_of_first = results.joinpath(*cells[0], "generations/provenance.json")
    write_json(record_of_first, read_json(record_of_first) | {"recipe": {"backend": "vllm"}})
    collect(results, cells, ["arditi-12"])
    setting = results.joinpath(*cells[0], "attacks/opened/generations")
    write_json(setting / "provenance.json", {"recipe": {"backend": "transformers"}})
    collect(results, cells, ["arditi-12"], attacked=lambda model: ["opened"])  # its answers are yet to come
    write_jsonl(setting / "attack.jsonl", [])
    with pytest.raises(HoldfastError, match="answers of two backends"):
        collect(results, cells, ["arditi-12"], attacked=lambda model: ["opened"])
