"""A study whose stages only write the files that their rules declare, and Snakemake run on it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
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
    "discard": ["removed.json"], "pairs": ["pairs.jsonl"], "draw": ["pairs.jsonl"], "modalities": ["modalities.json"],
    "visual": ["visual.jsonl"],
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
FILES["judge-by-model"] = FILES["score"] = FILES["judge"]
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
    (folder / "model/config.json").write_text('{"vision_config": {}}')
    for role in [*ROLES, "calibration"]:
        (folder / f"{role}.jsonl").write_text(json.dumps({"id": role, "text": role}) + "\n")
    (folder / "heldout.txt").write_text("text")
    workflow = Workflow(folder)
    workflow.write(study())
    return workflow


SUMMED_UP = {"tables": 1, "figures": 1, "report": 1, "all": 1}


def with_judge(config: dict) -> None:
    guard = {"judge": "wildguard", "source": "path:model"}
    config["evaluate"] |= {"judge_models": {"guard": guard}, "judges": ["guard", "arditi-12"]}
