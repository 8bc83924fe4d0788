"""What one stage wrote, damaged or of another model, given to the next: one line, exit code 2, and nothing written."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.checkpoints import load_model
from holdfast.cli import main
from holdfast.files import sha256, write_json, write_jsonl
from holdfast.provenance import input_checksum
from holdfast.refusal.activations import cache_activations, refuse_other_model
from safetensors.torch import load_file, save_file
from tiny import tiny_llama

LAYERS, WIDTH = 2, 32
ABOUT = {
    **{"layer": 1, "position": -1, "usable": True, "score": "first-token", "opening_tokens": [[3]]},
    "ablation": "plain",
}
EDIT = {
    **{"variant": "amplify", "matrices": ["o_proj"], "layers": [1], "alpha": 2.0, "keep_sparsity": False},
    "requantize": False,
}
ANSWER = {"id": "1", "prompt_id": "1", "prompt": "How?", "completion": "I cannot.", "finish_reason": "stop"}


def model(folder: Path, width: int = WIDTH, prompts: int = 4) -> None:
    """checkpoint/, direction/ and activations/ as the stages write them."""
    tiny_llama(folder / "checkpoint", layers=LAYERS, hidden=width)
    for name in ("direction", "activations"):
        (folder / name).mkdir()
    draw = torch.Generator().manual_seed(0)
    d = torch.randn(width, generator=draw)
    tensors = {"direction": d / d.norm(), "mean_difference": d, "harmless_mean": torch.zeros(LAYERS, width)}
    save_file(tensors, folder / "direction/direction.safetensors")
    write_json(folder / "direction/direction.json", ABOUT)
    cached = {k: torch.randn(prompts, 1, LAYERS, width, generator=draw) for k in ("harmful", "harmless")}
    save_file(cached, folder / "activations/activations.safetensors")
    write_json(folder / "activations/positions.json", {"positions": [-1], "tokens": ["x"], "layers": LAYERS})
    for kind in cached:
        records = [{"id": str(i), "text": f"{kind} {i}"} for i in range(prompts)]
        write_jsonl(folder / f"activations/{kind}.jsonl", records)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dense/, compressed/, and wide/ (another width) and few/ (one prompt of a kind)."""
    root = tmp_path_factory.mktemp("models")
    model(root / "dense")
    model(root / "compressed")
    model(root / "wide", width=48)
    model(root / "few", prompts=1)
    return root


@pytest.fixture
def there(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: those models, prompts and answers."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    write_jsonl(tmp_path / "prompts.jsonl", [{"id": str(i), "text": f"What is {i}?"} for i in range(4)])
    write_jsonl(tmp_path / "one.jsonl", [{"id": "0", "text": "What is it?"}])
    write_jsonl(tmp_path / "answers.jsonl", [{**ANSWER, "tokens": [3, 4]}])
    write_json(tmp_path / "match.json", EDIT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


PROMPTS = "--harmful prompts.jsonl --harmless prompts.jsonl"
OWN = "--direction dense/direction --own-direction compressed/direction"
STEER = f"steer compressed/checkpoint out {OWN} {PROMPTS} --recipe"
EDITED = f"edit compressed/checkpoint out --dense dense/checkpoint {OWN} {PROMPTS}"
EDITED += " --harmful-train prompts.jsonl --harmless-train prompts.jsonl --recipe"
MATCHED = '{"edit":"aird","direction":"random","matched_to":"x"} --matched-to match.json'
STEERED = '{"steer":"random","matched_to":"x"} --matched-to match.json'
MEDIATE = f"mediate compressed/checkpoint out --direction compressed/direction {PROMPTS} --recipe {{}}"
COMPARE = "compare out --dense dense --compressed compressed --table table.csv"
DIRECTION = (
    f"direction compressed/checkpoint out --activations compressed/activations {PROMPTS} --recipe {{}}"
)
TRANSFER = f"transfer out --dense dense --compressed compressed {PROMPTS}"
TUNE = "tune compressed/checkpoint out --harmful-answers answers.jsonl --harmless-answers answers.jsonl"
TUNE += " --evaluated one.jsonl"
JUDGE = 'judge out --generations answers.jsonl --recipe {"judges":["arditi-12"]}'
ASKED = 'judge-by-model dense/checkpoint out --generations answers.jsonl --recipe {"judge":"harmbench"}'


def run(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command ends with."""
    monkeypatch.setattr(sys, "argv", ["holdfast", *command.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("holdfast: ")]
    assert len(told) == 1
    assert not Path("out").exists()
    return told[0]


def direction(about: Any) -> Callable[[], None]:
    return lambda: write_json(Path("compressed/direction/direction.json"), about)


def tensor(name: str, value: torch.Tensor | None) -> Callable[[], None]:
    def change() -> None:
        file = Path("compressed/direction/direction.safetensors")
        kept = {k: v for k, v in load_file(file).items() if k != name}
        save_file(kept | ({} if value is None else {name: value}), file)

    return change


def cut() -> None:
    file = Path("compressed/direction/direction.safetensors")
    file.write_bytes(file.read_bytes()[:-9])


def unlinked(file: str) -> Callable[[], None]:
    return lambda: Path(file).unlink()


def matched(value: Any) -> Callable[[], None]:
    return lambda: Path("match.json").write_text(json.dumps(value))


def other_activations() -> None:
    """Those of the dense model, cached on the same prompts, whose shape is the same."""
    model = load_model(Path("dense/checkpoint"))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    model.save_pretrained("dense/checkpoint")
    shutil.rmtree("compressed/activations")
    given = Path("prompts.jsonl")
    cache_activations(Path("dense/checkpoint"), Path("compressed/activations"), given, given, {})


def answers(*records: Any) -> Callable[[], None]:
    return lambda: write_jsonl(Path("answers.jsonl"), records)


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("command", "damage", "said"),
    [
        (MEDIATE, direction({}), "direction.json: has no layer; run holdfast direction again"),
        (MEDIATE, direction([1]), "direction.json: not a JSON object"),
        (COMPARE, direction({**ABOUT, "layer": "x"}), "layer does not fit"),
        (COMPARE, direction({**ABOUT, "position": 1}), "position does not fit"),
        (COMPARE, direction({**ABOUT, "position": -2}), "holds 1 positions"),
        (COMPARE, direction({**ABOUT, "train_rows": {"harmful": [4]}}), "its train_rows are not of"),
        (MEDIATE, cut, "direction.safetensors: damaged"),
        (MEDIATE, tensor("direction", None), "holds no direction"),
        (MEDIATE, tensor("direction", torch.ones(3)), "do not have the shapes of a direction"),
        (MEDIATE, tensor("direction", torch.full((WIDTH,), torch.nan)), "direction holds NaN or infinity"),
        (MEDIATE, unlinked("compressed/direction/direction.safetensors"), "no such file"),
        (MEDIATE.replace("compressed/direction", "wide/direction"), nothing, "48 wide, does not fit"),
        (f"{MEDIATE} --dense-direction wide/direction", nothing, "48 wide, does not fit"),
        (COMPARE.replace("compressed compressed", "compressed wide"), nothing,
         "does not fit a model of 2 layers, 48 wide"),
        (COMPARE.replace("dense dense", "dense few").replace("compressed compressed", "compressed few"),
         nothing, "one harmful prompt"),
        (COMPARE, unlinked("compressed/activations/activations.safetensors"), "no such file"),
        (COMPARE.replace("compare out", "compare few"), nothing, "few: is a folder"),
        (COMPARE.replace("table.csv", "few"), nothing, "few: is a folder"),
        (COMPARE.replace("table.csv", "./out"), nothing, "out: is the file of the comparison itself"),
        (COMPARE.replace("table.csv", "prompts.jsonl/table.csv"), nothing, "its folder cannot be made"),
        (COMPARE.replace("compare out", "compare prompts.jsonl/out"), nothing, "its folder cannot be made"),
        (TRANSFER.replace("transfer out", "transfer few"), nothing, "few: is a folder"),
        (TRANSFER, unlinked("compressed/activations/activations.safetensors"), "no such file"),
        (TRANSFER, direction({**ABOUT, "score": None}), "names no score"),
        (TRANSFER.replace("prompts.jsonl", "one.jsonl"), nothing, "one prompt"),
        *((f"{STEER} {STEERED}", matched(value), "match.json") for value in
          ([1], {}, {"alpha": "x"}, {"alpha": None}, {"alpha": -1})),
        (f'{STEER} {{"steer":"dense","alpha":1e300}}', nothing, "alpha 1e+300 times the direction is infinite"),
        (STEER.replace("compressed/direction", "gone") + ' {"steer":"dense","alpha":1}', nothing, "gone"),
        *((f"{EDITED} {MATCHED}", matched(value), "match.json") for value in
          ([], {}, {**EDIT, "variant": "x"}, {**EDIT, "layers": 1}, {**EDIT, "matrices": ["q_proj"]})),
        *((command + f' {{{recipe},"judge":"x"}}', nothing, "judge: unknown judge 'x'; choose from: arditi-12")
          for command, recipe in ((EDITED, '"edit":"aird","variant":"restore","layer":1'),
                                  (STEER, '"steer":"dense","alpha":1'))),
        (DIRECTION, other_activations, "activations: not of the checkpoint compressed/checkpoint"),
        (DIRECTION, lambda: write_json(Path("compressed/activations/provenance.json"), {}), "has no inputs"),
        (EDITED.replace("dense/direction", "wide/direction") + ' {"edit":"aird"}', nothing, "48 wide, does not fit"),
        (EDITED.replace("dense/checkpoint", "wide/checkpoint") + ' {"edit":"aird","variant":"restore","layer":1}',
         nothing, "its matrices are (48"),
    ],
)  # fmt: skip
def test_directions_and_matches(
    there: Path,
    command: str,
    damage: Callable[[], None],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage()
    assert said in run(command, monkeypatch, capsys)
    assert not Path("table.csv").exists()
    assert not Path("out.provenance.json").exists()


@pytest.mark.parametrize(
    ("command", "damage", "said"),
    [
        *(
            (command, answers(*records), said)
            for command in (JUDGE, ASKED)
            for records, said in (
                ([], "holds no answer"),
                ([{}], "record 1: has no id"),
                ([ANSWER, {**ANSWER, "completion": None}], "record 2: completion does not fit"),
                ([{**ANSWER, "completion": 5}], "completion does not fit"),
                ([{**ANSWER, "prompt": None}], "prompt does not fit"),
                ([{k: v for k, v in ANSWER.items() if k != "finish_reason"}], "has no finish_reason"),
            )
        ),
        (JUDGE.replace(" out ", " . "), nothing, "would replace its own input answers.jsonl"),
        (ASKED.replace(" out ", " few ").replace("answers.jsonl", "few/answers.jsonl"), nothing,
         "would replace its own input few/answers.jsonl"),
        *((f"{command} --generations x/answers.jsonl", nothing, "is named answers, as answers.jsonl is")
          for command in (JUDGE, ASKED)),
        (TUNE, answers({**ANSWER, "completion": "Yes, of course I do.", "tokens": ["x"]}), "tokens.0 does not fit"),
        (TUNE, answers({**ANSWER, "completion": "Yes, of course I do.", "tokens": [10**6]}),
         "token 1000000 of an answer is not among the model's"),
        ("instruct dense/checkpoint dense/checkpoint/x --recipe {\"system_prompt\":\"Hi.\"}", nothing,
         "lies in its own input"),
    ],
)  # fmt: skip
def test_answers(
    there: Path,
    command: str,
    damage: Callable[[], None],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command == TUNE:
        command = f'{TUNE} --recipe {{"tune":"lora","data":"answers"}}'
    damage()
    before = Path("answers.jsonl").read_bytes()
    assert said in run(command, monkeypatch, capsys)
    assert Path("answers.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "not UTF-8 text"),
        (b" \n", "holds no text"),
        (None, "has another checksum; add sha256: "),
    ],
)
def test_suffixes(
    there: Path,
    content: bytes | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("suffix.txt").write_bytes(content or b"please")
    checksum = sha256(Path("suffix.txt")) if content else "0" * 64
    recipe = json.dumps({"suffix": "file:suffix.txt", "sha256": checksum}, separators=(",", ":"))
    command = f"generate dense/checkpoint out --prompts prompts.jsonl --recipe {recipe}"
    assert said in run(command, monkeypatch, capsys)


def test_moved_results_still_belong_together(there: Path) -> None:
    made = {"inputs": {"compressed/checkpoint": input_checksum(Path("compressed/checkpoint"))}}
    write_json(Path("compressed/activations/provenance.json"), made)
    Path("compressed").rename("moved")
    checkpoint = Path("moved/checkpoint")
    refuse_other_model(Path("moved/activations"), checkpoint, input_checksum(checkpoint))


def test_labels(there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    head = "objective,human_score,assistant_response\n"
    Path("labels.csv").write_text(f"{head}a,1,{'b' * 140_000}\n")
    command = 'agreement out --labels labels.csv --recipe {"judges":["arditi-12"]}'
    assert "labels.csv: not readable (field larger" in run(command, monkeypatch, capsys)
    Path("labels.csv").write_text(f"{head}a,1\n")
    assert "row 1: has fewer fields than the header" in run(command, monkeypatch, capsys)
    command = 'agreement out --labels labels.csv --recipe {"judge_models":{"../../q":"wildguard"}}'
    assert "'../../q' cannot be a folder's name" in run(command, monkeypatch, capsys)


def test_repairs(there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = "repair compressed/checkpoint --dense dense/checkpoint --out prompts.jsonl/x"
    assert "Not a directory; write elsewhere" in run(command, monkeypatch, capsys)
    write_json(Path("dense/checkpoint/holdfast.json"), {"thinking": "yes"})
    told = run("repair compressed/checkpoint --dense dense/checkpoint --out out", monkeypatch, capsys)
    assert "dense/checkpoint/holdfast.json: thinking does not fit" in told
    assert not Path("out.work").exists()
