"""The command: what a user's mistakes end in."""

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = str(Path(__file__).parents[2] / "config/demo.yaml")


def holdfast(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "holdfast", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "none.yaml"], "cannot be read"),
        (["generate", "model", "out", "--prompts", "a=a.jsonl", "--recipe", "{"], "--recipe: not JSON"),
        (
            ["generate", "model", "out", "--prompts", "a=a.jsonl", "--recipe", '{"max_new_token": 3}'],
            "max_new_tokens",
        ),
        (
            ["generate", "model", "out", "--prompts", "a=none.jsonl", "--recipe", "{}"],
            "none.jsonl: no such file",
        ),
        (
            ["generate", "model", "out", "--prompts", "../a=a.jsonl", "--recipe", "{}"],
            "'../a' cannot be a file's name",
        ),
        (
            ["generate", "model", "out", "--prompts", "=a.jsonl", "--recipe", "{}"],
            "'' cannot be a file's name",
        ),
        (
            [
                "generate",
                "model",
                "out",
                "--prompts",
                "a/x.jsonl",
                "--prompts",
                "x=y.jsonl",
                "--recipe",
                "{}",
            ],
            "y.jsonl: is named x, as a/x.jsonl is",
        ),
        (
            ["generate", "model", "in", "--prompts", "in/a.jsonl", "--recipe", "{}"],
            "would replace its own input",
        ),
        (
            ["disjoint", "out", "--prompts", "a/x.jsonl", "--prompts", "b/x.jsonl"],
            "is named x, as a/x.jsonl is",
        ),
        (["disjoint", "a.jsonl", "--prompts", "a.jsonl"], "would replace its own input"),
        (["agreement", "a.csv", "--labels", "a.csv", "--recipe", "{}"], "would replace its own input"),
        (["report", DEMO, "--config", DEMO, "--results", "none"], "would replace its own input"),
        (
            [
                "transfer",
                "a.jsonl",
                "--dense",
                "d",
                "--compressed",
                "c",
                "--harmful",
                "a.jsonl",
                "--harmless",
                "b.jsonl",
            ],
            "would replace its own input",
        ),
        (["generate", "model", "model", "--prompts", "a=a.jsonl", "--recipe", "{}"], "its own input"),
        (["judge", "out", "--generations", "none.jsonl", "--recipe", '{"judges": ["x"]}'], "unknown judge"),
        (
            [*["judge-by-model", "model", "out", "--generations", "a.jsonl", "--recipe"], '{"judge": "x"}'],
            "unknown model judge 'x'",
        ),
        (["judge-by-model", "model", "out", "--generations", "a.jsonl", "--recipe", "{}"], "judge: missing"),
        (
            [*["agreement", "out.json", "--labels", "none.csv", "--recipe"], '{"judges": ["arditi-12"]}'],
            "none.csv: cannot be read",
        ),
        (["ability", "model", "out", "--recipe", "{}"], "zero_shot: missing"),
        (["draw", "out"], "out: nothing to draw; give --harmful and --harmless"),
        (["tables", "out", "--config", DEMO, "--results", "none"], "none: no such folder"),
        (
            [
                "compress",
                "none",
                "out",
                "--recipe",
                '{"prune": "wanda", "sparsity": 2}',
                "--calibration",
                "c.jsonl",
            ],
            "sparsity",
        ),
        (
            ["activations", "none", "out", "--harmful", "h.jsonl", "--harmless", "h.jsonl"],
            "h.jsonl: no such file",
        ),
    ],
)
def test_mistake_is_one_line_with_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_every_stage_is_a_subcommand() -> None:
    text = holdfast("--help").stdout
    stages = (
        "check prompts disjoint fetch compress activations direction compare transfer mediate generate judge"
    )
    stages += " judge-by-model agreement ability"
    methods = "edit instruct steer recalibrate tune"
    rest = "tables figures report show repair tune-refusal train-vision pairs"
    for name in [*stages.split(), *methods.split(), *rest.split()]:
        assert name in text
