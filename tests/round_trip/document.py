"""docs/round-trip.md, written from what a test run measured."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from holdfast.provenance import package_versions
from round_trip.measurement import LOGIT_PROMPTS, NEW_TOKENS, PROMPTS, VLLM_DTYPES, Measured
from round_trip.verdicts import DRIFT, NEAR_TIE, OWN_NOISE, TOLERANCE, loads_alike

COLUMNS = (
    "checkpoint",
    "loads alike",
    "vLLM serves it",
    "max Δ logit",
    "plain transformers",
    "vLLM computes in",
    f"same of {PROMPTS}",
    "largest gap",
    "max Δ log p",
    "own noise",
)
VERDICTS = COLUMNS[1:3]
VERSIONS = ("python", "torch", "transformers", "compressed-tensors", "llmcompressor", "bitsandbytes")


def cells(measured: Measured) -> tuple[str, ...]:
    """A line of the table."""
    agreement, own = measured.agreement, measured.own
    tried = measured.vllm and "died" not in measured.vllm
    served = "not run" if not tried else "no" if agreement is None else "yes"
    return (
        measured.row.name,
        "yes" if loads_alike(measured) else "no",
        served,
        f"{measured.delta:.1g}",
        "–" if measured.plain_delta is None else f"{measured.plain_delta:.1g}",
        measured.vllm.get("dtype", "–"),
        "–" if agreement is None else str(agreement.equal),
        "–" if agreement is None or not agreement.gaps else f"{agreement.largest_gap:.2g}",
        "–" if agreement is None else f"{agreement.drift:.1g}",
        "–" if own is None else f"{own.equal} ({own.largest_gap:.2g})",
    )


def verdicts_in(document: Path) -> dict[str, tuple[str, ...]]:
    """The verdict columns of the table of a written document, by checkpoint."""
    lines = [line.strip("| \n").split(" | ") for line in document.read_text(encoding="utf-8").splitlines()]
    rows = [line for line in lines if len(line) == len(COLUMNS)]
    return {row[0]: tuple(row[1 : 1 + len(VERDICTS)]) for row in rows[2:]}  # below the heading and its rule


def refusal(error: str) -> str:
    """One line of vLLM's error: without pydantic's count of errors; of a list of kernels the last one's reason."""
    kind, _, text = error.partition(": ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and "validation error" in lines[0]:
        lines = lines[1:]
    if not lines:
        return kind
    found = lines[0].partition(" Must be one of")[0]
    if found.endswith("Reasons:"):
        found += f" {lines[-1]}"
    return f"{kind}: {found}"[:300]


def written(results: Sequence[Measured]) -> str:
    """The whole document."""
    versions = package_versions()
    serving = next((m.vllm["version"] for m in results if "version" in m.vllm), None)
    table = [COLUMNS, ("---",) * len(COLUMNS), *map(cells, results)]
    refused = [f"* {m.row.name}: `{refusal(m.vllm['error'])}`" for m in results if m.vllm.get("error")]
    named = ", ".join(f"{name} {versions[name]}" for name in VERSIONS if name in versions)
    # What a kernel does depends on the processor's instructions more than on its name.
    hardware = f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return "\n".join(
        [
            "# Round trips: what loads where, and agrees",
            "",
            "Written by a test run (`make round-trip`), not by hand; `tests/round_trip` checks that it lists what ran",
            "and that its yes and no are still so. Numbers differ between machines.",
            "",
            f"* {datetime.now(UTC):%Y-%m-%d}, {hardware}; no GPU.",
            f"* {named}; vLLM {serving or 'not run'} (its build for CPUs).",
            "* The embedded model (SmolLM2-135M with its refusal adapter), float32, all layers unless a row says so;",
            "  calibration 4 × 64 tokens: the formats are tried here, not the methods' quality.",
            "",
            "## What the columns say",
            "",
            f"* **loads alike**: yes if no logit of {LOGIT_PROMPTS} prompts differs by more than {TOLERANCE:g}",
            "  between the compressed model in memory, as it was saved, and the checkpoint loaded again: by",
            "  `holdfast.checkpoints.load_model` (**max Δ logit**) and, where transformers can, by its",
            "  own `from_pretrained` (**plain transformers**). For auto-gptq the model in memory is transformers with",
            "  gptqmodel's plain kernel on the saved checkpoint; core loads it without gptqmodel. Plain transformers",
            "  is shown for NF4 but not judged: on CPUs with AVX-512 bf16 bitsandbytes then multiplies in bf16, which",
            "  `load_model` switches off, so that every machine gives the same numbers.",
            f"* **vLLM serves it**: it answers; {PROMPTS} harmless prompts, as token ids, {NEW_TOKENS} greedy tokens,",
            f"  in the first of {', '.join(VLLM_DTYPES)} that its kernels take. **same of {PROMPTS}**: prompts whose",
            "  tokens all equal transformers' on the same checkpoint in float32. **largest gap**: where one differs,",
            "  by how much transformers' logit of its own token exceeds that of vLLM's, at the first difference.",
            "  **max Δ log p**: of vLLM's tokens up to there.",
            f"  Asserted: every difference is a near-tie, a gap of at most {NEAR_TIE['float32']:g} (float32),",
            f"  {NEAR_TIE['float16']:g} (float16), {NEAR_TIE['bfloat16']:g} (bfloat16); log p within"
            f" {DRIFT['float32']:g}, {DRIFT['float16']:g}, {DRIFT['bfloat16']:g}.",
            "* **own noise**: where activations are rounded to 8 bits, a difference in the last bit of a float32 turns",
            "  some roundings, and 30 layers multiply that. The column is what transformers makes of itself, the",
            "  inputs of its linears off by one float32 rounding: prompts the same (largest gap). No two",
            "  implementations can agree better; there a gap may be up to",
            f"  {OWN_NOISE:g} × that largest gap, which shows gross faults only. The same recipe on a model of",
            "  one layer, where nothing is multiplied, shows the finer ones.",
            "",
            *("| " + " | ".join(line) + " |" for line in table),
            "",
            "## What vLLM's build for CPUs does not serve, with its own error",
            "",
            *(refused or ["Nothing." if serving else "Not run."]),
            "",
            "Whether its builds for GPUs serve these was not tried.",
            "",
            "## Pruned models",
            "",
            "They are saved as dense tensors with zeros, and their files are as large as the dense model's:",
            "compressed-tensors and vLLM have dropped their sparse formats. Nothing is saved in memory or time either;",
            "what pruning does to a model can be studied, not sold.",
            "",
        ]
    )
