"""A results folder written record by record, so that every number in a report is known."""

from pathlib import Path
from typing import Any

import pandas as pd
from holdfast.config.by_hand import validated
from holdfast.files import write_json, write_jsonl

MODEL = "tiny"
JUDGES = ["arditi-12", "study-l-31"]
CELLS = [(MODEL, c, k) for c in ("wanda-50", "rtn-4") for k in ("as-is", "aird", "random-edit")]
CELLS.insert(0, (MODEL, "dense", "as-is"))
SCRIPT = "Sure <script>alert('x')</script> & more"


def verdicts(refused: int, degenerate: int, n: int, judge: str = "arditi-12") -> list[dict[str, Any]]:
    """The first ``refused`` prompts are refused, the last ``degenerate`` ones are degenerate."""
    return [
        {
            "id": f"p{i}",
            "prompt_id": f"p{i}",
            "judge": judge,
            "refused": i < refused,
            "degenerate": i >= n - degenerate,
            "label": "refused" if i < refused else "degenerate" if i >= n - degenerate else "answered",
        }
        for i in range(n)
    ]


def write_cell(cell: Path, refused: int, over: int, degenerate: int = 0, text: str = "Sure") -> None:
    both = verdicts(refused, degenerate, 20) + verdicts(max(refused - 1, 0), 0, 20, "study-l-31")
    write_jsonl(cell / "verdicts/attack.jsonl", both)
    write_jsonl(cell / "verdicts/over_refusal.jsonl", verdicts(over, 1, 10))
    for name, n in (("attack", 20), ("over_refusal", 10)):
        said = {"prompt": f"{name} prompt", "completion": text, "tokens": 3, "finish_reason": "stop"}
        records = [{"id": f"p{i}", "prompt_id": f"p{i}", **said} for i in range(n)]
        write_jsonl(cell / f"generations/{name}.jsonl", records)
    write_json(
        cell / "ability/zero_shot.json",
        {
            "boolq": {"metric": "acc", "value": 0.6, "stderr": 0.03, "n": 200},
            "rte": {"metric": "acc", "value": 0.5, "stderr": 0.04, "n": 100},
        },
    )
    text_model = {"perplexity": 30.0, "low": 28.0, "high": 33.0, "windows": 40, "tokens": 20480}
    write_json(cell / "ability/perplexity.json", text_model)


def write_transfer(folder: Path, *, acts: bool) -> None:
    """The dense model's direction acts in the compressed model if ``acts``, the compressed one's never does."""

    def around(value: float) -> dict[str, float]:
        return {"value": value, "n": 20, "low": value - 1, "high": value + 1}

    def way(p: float, p_shuffled: float) -> dict[str, Any]:
        values = {
            "bypass": {"baseline": 2.0, "own": -8.0, "other": -6.0, "other_minus_own": 2.0},
            "induce": {"baseline": -7.0, "own": 1.0, "other": 0.5, "other_minus_own": -0.5},
        }
        null = {"mean": 0.25, "low": -1.0, "high": 1.5, "n": 4}
        nulls = {
            "null": null,
            "p": p,
            "null_shuffled": null | {"mean": 0.3, "low": -2.0},
            "p_shuffled": p_shuffled,
        }
        halves = {"null_split_half": {"mean": -7.5, "low": -8.5, "high": -7.0, "n": 4}}
        return {
            score: {key: around(v) for key, v in of.items()} | nulls | halves for score, of in values.items()
        }

    found = {
        "dense_in_compressed": way(0.0005, 0.001) if acts else way(0.2, 0.1),
        "compressed_in_dense": way(0.001, 0.03),
    }
    write_json(folder / "transfer.json", found)


def write_cosines(path: Path, cosine: float) -> None:
    """Two positions of three layers: nothing differs before the first block, and only the last one has turned."""
    bands = {
        f"{null}{bound}": middle + off
        for null, middle in {"split_half": 0.97, "random": 0.1, "shuffled": 0.12}.items()
        for bound, off in {"": 0, "_low": -0.02, "_high": 0.02}.items()
    }
    rows = []
    for position in (-2, -1):
        rows.append({"position": position, "layer": 0})
        for layer, at, p in ((1, 0.99, 0.4), (2, cosine, 0.001 if cosine < 0.95 else 0.4)):
            interval = {"cosine": at, "low": at - 0.01, "high": at + 0.01}
            row = {
                "position": position,
                "layer": layer,
                **interval,
                **bands,
                "p": p,
                "p_holm": min(1.0, 4 * p),
            }
            rows.append(row | ({} if position == -1 else {"cosine": 0.5}))
    pd.DataFrame(rows, columns=list(rows[1])).to_csv(path, index=False)


def write_compression(
    folder: Path, recipe: dict[str, Any], density: float | None, bits: float, cosine: float, layer: int
) -> None:
    provenance = {
        "recipe": recipe,
        "density": density,
        "bits_per_weight": bits,
        "commit": "abc123",
        "packages": {"torch": "2.9"},
    }
    write_json(folder / "checkpoint/provenance.json", provenance)
    band = {"mean": 0.97, "low": 0.95, "high": 0.99, "n": 20}
    write_json(
        folder / "comparison.json",
        {
            "cosine": {"value": cosine, "low": cosine - 0.05, "high": cosine + 0.05, "n": 40},
            "explained": {
                "value": cosine**2,
                "n": 40,
                "low": (cosine - 0.05) ** 2,
                "high": (cosine + 0.05) ** 2,
            },
            "dense": {"layer": 20, "position": -1},
            "p": 0.001 if cosine < 0.95 else 0.4,
            "null_split_half": band,
            "null_random": {"mean": 0, "low": -0.2, "high": 0.2, "n": 9},
        },
    )
    write_cosines(folder / "comparison.csv", cosine)
    write_transfer(folder, acts=cosine > 0.9)
    write_json(
        folder / "direction/direction.json",
        {
            "position": -1,
            "layer": layer,
            "usable": True,
            "score": "phrase",
            "auroc": {"phrase": 0.9, "token": 0.6},
            "score_valid": True,
            "score_checked": True,
            "score_check": {
                "phrase": {"on": "harmful", "auroc": {"value": 0.85, "low": 0.7, "high": 0.95, "n": 20}}
            },
        },
    )
    shares = {"baseline": 18, "ablate": 1, "ablate-dense": 3, "ablate-random": 17}
    records = [
        {
            "intervention": name,
            "set": "harmful",
            "prompt_id": f"p{i}",
            "refused": i < count,
            "degenerate": False,
        }
        for name, count in shares.items()
        for i in range(20)
    ]
    records += [
        {
            "intervention": name,
            "set": "harmless",
            "prompt_id": f"p{i}",
            "refused": i < count,
            "degenerate": False,
        }
        for name, count in {
            "baseline": 1,
            "add": 19,
            "add-dense": 15,
            "add-random": 2,
            "add-dense-random": 3,
        }.items()
        for i in range(20)
    ]
    write_jsonl(folder / "mediation/verdicts.jsonl", records)


def write_edit(cell: Path, direction: str, matched_to: str | None = None) -> None:
    edit = {
        "variant": "centred",
        "direction": direction,
        "layers": [16, 17],
        "alpha": 6.0,
    }
    write_json(cell / "checkpoint/edit.json", edit)
    recipe = validated("edit", {"direction": direction, "matched_to": matched_to})
    weights = {"density": 0.51, "bits_per_weight": 32}
    write_json(cell / "checkpoint/provenance.json", {"recipe": recipe} | weights)


def write_search(cell: Path) -> None:
    """A search whose best score was not borne out by answers, so that the next best edit was made."""
    rate = {"n": 20, "low": 0.1, "high": 0.9}
    best = {
        "variant": "amplify",
        "layers": [16],
        "alpha": 8.0,
        "refusal_score": 2.0,
        "kl": 0.09,
        "prompts": 20,
    }
    made = {**best, "variant": "centred", "alpha": 6.0, "refusal_score": 1.5}
    last = {**best, "variant": "restore", "alpha": None, "refusal_score": -0.5, "kl": 0.01}
    rejected = {**best, "chosen": False, "rejected": "refuses too many harmless prompts"}
    edit = {
        **{"variant": "centred", "direction": "dense", "layers": [16], "alpha": 6.0, "reason": ""},
        "trace": [{"refusal_score": -1.0, "kl": 0.0, "prompts": 20}],
        "leaderboard": [
            rejected,
            {**made, "chosen": True, "rejected": None},
            {**last, "chosen": False, "rejected": None},
        ],
        "validation": {
            "before": {"harmful_refused": {"value": 0.4, **rate}, "harmless_refused": {"value": 0.2, **rate}},
            "tries": [
                {
                    **rejected,
                    "harmful_refused": {"value": 0.9, **rate},
                    "harmless_refused": {"value": 0.6, **rate},
                },
                {
                    **{**made, "rejected": None},
                    "harmful_refused": {"value": 0.8, **rate},
                    "harmless_refused": {"value": 0.25, **rate},
                },
            ],
        },
    }
    write_json(cell / "checkpoint/edit.json", edit)


def write_results(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    model = folder / MODEL
    write_compression(model / "dense", {"source": "package:x"}, 1.0, 32, 1.0, 20)
    for name in ("comparison.json", "comparison.csv", "transfer.json"):
        (model / "dense" / name).unlink()
    write_compression(model / "wanda-50", {"prune": "wanda", "sparsity": 0.5}, 0.5, 32, 0.8, 18)
    write_compression(model / "rtn-4", {"quantize": "rtn", "bits": 4}, None, 4.25, 0.96, 20)
    write_cell(model / "dense/as-is", refused=20, over=1)
    write_cell(model / "wanda-50/as-is", refused=8, over=1, degenerate=5, text=SCRIPT)
    write_cell(model / "wanda-50/aird", refused=18, over=3)
    write_cell(model / "wanda-50/random-edit", refused=7, over=1)
    write_cell(model / "rtn-4/as-is", refused=17, over=1)
    write_cell(model / "rtn-4/aird", refused=18, over=1)
    write_cell(model / "rtn-4/random-edit", refused=17, over=1)
    for compression in ("wanda-50", "rtn-4"):
        write_edit(model / compression / "aird", "dense")
        write_edit(model / compression / "random-edit", "random")
    return folder


def row(frame: pd.DataFrame, compression: str, method: str, measure: str) -> Any:
    keys = (frame["compression"] == compression) & (frame["method"] == method) & (frame["measure"] == measure)
    assert keys.sum() == 1, f"{measure}: {keys.sum()} rows"
    return frame[keys].iloc[0]
