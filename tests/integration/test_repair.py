"""``holdfast repair`` as a user runs it, on tiny models with a planted refusal; its output read in a fresh process."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from holdfast.compression import compress
from holdfast.evaluation.judges import judge_files
from holdfast.files import read_json, read_jsonl, sha256, write_jsonl
from holdfast.repair.measuring import GENERATE, JUDGE
from holdfast.repair.request import request
from holdfast.repair.run import repair
from planted import WORDS, prompts, refusing_llama

COUNT = 80  # of each kind: 39 train, 9 validation, 30 test


def own_prompts(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.jsonl"
    # The marker is punctuation, which does not make a prompt another one: each kind has last words of its own.
    last = WORDS[: len(WORDS) // 2] if kind == "harmful" else WORDS[len(WORDS) // 2 :]
    texts = [f"{text} {last[i // len(WORDS)]}" for i, text in enumerate(prompts(kind, COUNT))]
    write_jsonl(path, [{"id": f"{kind}{i}", "text": text} for i, text in enumerate(texts)])
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    refusing_llama(folder / "dense", 1.0)
    refusing_llama(folder / "weakened", 0.2)
    own_prompts(folder, "harmful")
    own_prompts(folder, "harmless")
    return folder


def command(folder: Path, model: str, out: Path, *more: str) -> list[str]:
    own = [f"--{kind}={folder / f'{kind}.jsonl'}" for kind in ("harmful", "harmless")]
    return [
        *(sys.executable, "-m", "holdfast", "repair", str(folder / model), "--dense", str(folder / "dense")),
        *("--out", str(out), *own, *more),
    ]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def repaired(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("repaired") / "out"
    done = run(*command(models, "weakened", out))
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    return out, done.stdout


def counts(record: dict[str, Any], model: str) -> tuple[int, int]:
    found = record["measured"][model]
    return found["genuine_refusal"]["count"], found["over_refusal"]["count"]


def test_refusal_is_given_back_and_the_control_gives_none(repaired: tuple[Path, str]) -> None:
    record = read_json(repaired[0] / "repair.json")
    assert counts(record, "dense") == (30, 0)
    before, after, control = (counts(record, m)[0] for m in ("compressed", "repaired", "control"))
    assert before < 10
    assert after > 25
    assert control <= before + 3
    assert record["changes"]["harmful"]["p"] < 0.001
    assert record["edit"]["candidates"] > 50
    assert record["measured"]["repaired"]["zero_shot"]["holdfast_choice"]["n"] == 120
    assert not repaired[0].with_name("out.work").exists()


def test_printed_numbers_are_those_of_the_output_in_a_fresh_process(
    repaired: tuple[Path, str], models: Path, tmp_path: Path
) -> None:
    """Whoever has the prompts and the seed splits them again, and counts as many refusals."""
    out, printed = repaired
    splitting = (
        "import sys; from pathlib import Path; from holdfast.repair.request import prompt_sets, request;"
        "from holdfast.files import write_jsonl; folder, out = map(Path, sys.argv[1:]);"
        "wanted = request(str(folder / 'dense'), str(folder / 'dense'), None, folder / 'harmful.jsonl',"
        " folder / 'harmless.jsonl', False, 0);"
        "[write_jsonl(out / f'{n}.jsonl', r) for n, r in prompt_sets(wanted).items()]"
    )
    assert run(sys.executable, "-c", splitting, str(models), str(tmp_path)).returncode == 0
    record = read_json(out / "repair.json")
    sets = {kind: tmp_path / f"{kind}_test.jsonl" for kind in ("harmful", "harmless")}
    for kind, file in sets.items():
        assert sha256(file) == record["prompts"][kind]["test"]["sha256"]
    named = [f"--prompts={kind}={file}" for kind, file in sets.items()]
    generate = [sys.executable, "-m", "holdfast", "generate", str(out), str(tmp_path / "answers"), *named]
    assert run(*generate, "--recipe", json.dumps(GENERATE)).returncode == 0
    judge_files(
        [tmp_path / "answers" / f"{kind}.jsonl" for kind in sets], tmp_path / "verdicts", {"judges": [JUDGE]}
    )
    verdicts = {kind: read_jsonl(tmp_path / "verdicts" / f"{kind}.jsonl") for kind in sets}
    genuine = sum(v["refused"] and not v["degenerate"] for v in verdicts["harmful"])
    assert (genuine, sum(v["refused"] for v in verdicts["harmless"])) == counts(record, "repaired")
    row = next(line for line in printed.splitlines() if line.strip().startswith("refused "))
    assert f"{genuine}/30" in row
    assert printed.splitlines()[-1].startswith(
        f"refusal repaired: {genuine} of 30 harmful test prompts refused, "
    )


def test_card_tells_what_was_done_and_shows_no_prompt_and_no_answer(
    repaired: tuple[Path, str], models: Path
) -> None:
    card = (repaired[0] / "README.md").read_text()
    assert card.startswith("---\nlibrary_name:")  # folders are no names of the hub's
    record = read_json(repaired[0] / "repair.json")
    for wanted in (
        "random control", "A reconstruction.", "arditi-12 finds", "Refusal is not safety", "over-refusal rises",
        f"variant `{record['edit']['variant']}`", f"layer {record['edit']['layers'][0]}", "torch ",
        *record["repaired"]["weights"].values(),
    ):  # fmt: skip
        assert wanted in card
    assert str(models) not in card
    for kind in ("harmful", "harmless"):
        assert not any(r["text"] in card for r in read_jsonl(models / f"{kind}.jsonl"))
    assert "I'm sorry" not in card
    assert re.search(r"Cohen's kappa 0\.\d\d \[0\.\d\d, 0\.\d\d\]", card)


def test_interrupted_repair_goes_on_and_ends_alike(
    repaired: tuple[Path, str], models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work = tmp_path / "out.work"
    wanted = command(models, "weakened", out)
    with subprocess.Popen(wanted, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not (work / "own-direction/provenance.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    kept = [*work.glob("*/provenance.json")]
    assert len(kept) >= 5
    assert not out.exists()
    times = {file: file.stat().st_mtime_ns for file in kept}
    resumed = subprocess.Popen(wanted, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seen: dict[Path, int] = {}
    while resumed.poll() is None:  # the steps' records vanish with the work folder
        for file in kept:
            try:
                seen[file] = file.stat().st_mtime_ns
            except FileNotFoundError:
                continue
        time.sleep(0.05)
    printed = resumed.communicate()[0]
    assert resumed.returncode == 0
    assert "going on from there" in printed
    assert seen == times
    first, second = (read_json(folder / "repair.json") for folder in (repaired[0], out))
    assert {k: v for k, v in first.items() if k != "packages"} == {
        k: v for k, v in second.items() if k != "packages"
    }


@pytest.mark.parametrize(
    "recipe",
    [
        {"prune": "magnitude", "sparsity": 0.1},
        {"quantize": "rtn", "bits": 8, "group_size": 32},
        {"quantize": "llm-int8"},
    ],
    ids=lambda recipe: recipe.get("prune") or recipe["quantize"],
)
def test_pruned_and_quantized_models_are_repaired_in_their_own_format(
    models: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    compress(models / "weakened", tmp_path / "compressed", recipe)
    own = [models / f"{kind}.jsonl" for kind in ("harmful", "harmless")]
    wanted = request(str(tmp_path / "compressed"), str(models / "dense"), None, *own, True, 0)
    record = repair(wanted, tmp_path / "out", print)
    assert counts(record, "repaired")[0] > counts(record, "compressed")[0] + 15
    before, after = (read_json(tmp_path / name / "config.json") for name in ("compressed", "out"))
    assert record["edit"]["keep_sparsity"] == ("prune" in recipe)
    if "prune" in recipe:
        assert (
            record["repaired"]["density"] <= record["compressed"]["density"] == pytest.approx(0.9, abs=0.01)
        )
        assert "pruned by magnitude, 10 %" in (tmp_path / "out/README.md").read_text()
    else:
        quantizations = [config["quantization_config"] for config in (before, after)]
        assert quantizations[0]["quant_method"] == quantizations[1]["quant_method"]
        assert quantizations[0] != quantizations[1]  # the edited matrices are exceptions now
        assert f"quantized by {recipe['quantize']}" in (tmp_path / "out/README.md").read_text()
    assert record["measured"]["repaired"]["zero_shot"] == {}


def test_nothing_is_written_when_refusal_does_not_rise(models: Path, tmp_path: Path) -> None:
    """The dense model itself refuses everything already."""
    shutil.copytree(models / "dense", tmp_path / "same")
    for kind in ("harmful", "harmless"):
        shutil.copy(models / f"{kind}.jsonl", tmp_path)
    shutil.copytree(models / "dense", tmp_path / "dense")
    out = tmp_path / "out"
    done = run(*command(tmp_path, "same", out, "--quick"))
    assert done.returncode == 3
    assert re.search("refusal did not rise: 30 of 30 .* 30 after|no edit was found", done.stderr)
    assert "Traceback" not in done.stderr
    assert not out.exists()
