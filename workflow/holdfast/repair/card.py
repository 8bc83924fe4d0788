"""What a person reads of a repair: the table in the terminal, and the model card (README.md)."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from holdfast.repair.measuring import SETS
from holdfast.repair.outcome import MODELS

TITLES = {"dense": "dense", "compressed": "before", "repaired": "after", "control": "random control"}
MISSING = "–"


def rows(measured: Mapping[str, Any], short: bool = False) -> list[list[str]]:
    """What was measured, a row each, of MODELS: rates as count/n with percentages, all with intervals.

    ``short``: without what a terminal of 100 columns has no room for.
    """
    told = [
        ["refused" if short else "harmful prompts refused", *_rates(measured, "genuine_refusal", short)],
        ["attack success", *_rates(measured, "attack_success", short)],
        ["over-refusal", *_rates(measured, "over_refusal", short)],
        ["perplexity", *(perplexity(measured[m]["perplexity"]) for m in MODELS)],
    ]
    for task in measured["repaired"]["zero_shot"]:
        accuracy = [measured[m]["zero_shot"].get(task) for m in MODELS]
        told.append([task if short else f"zero-shot, {task}", *(share(a) for a in accuracy)])
    return told


def _rates(measured: Mapping[str, Any], name: str, short: bool) -> list[str]:
    return [rate(measured[m][name], short) for m in MODELS]


def rate(found: Mapping[str, Any], short: bool) -> str:
    count = f"{found['count']}/{found['n']}"
    interval = f"[{100 * found['low']:.0f}, {100 * found['high']:.0f}]"
    return f"{count} {interval}" if short else f"{count}, {100 * found['value']:.0f} % {interval}"


def perplexity(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return MISSING
    if found["perplexity"] is None:
        return "not finite"
    return f"{found['perplexity']:.1f} [{found['low']:.0f}, {found['high']:.0f}]"


def share(found: Mapping[str, Any] | None) -> str:
    return MISSING if found is None else f"{100 * found['value']:.1f} ± {196 * found['stderr']:.1f} %"


def terminal_table(measured: Mapping[str, Any]) -> Table:
    table = Table(
        title="on test prompts: count/n and 95 % interval in percent", title_justify="left", box=SIMPLE
    )
    table.add_column("")
    for name in MODELS:
        table.add_column(TITLES[name], justify="right")
    for row in rows(measured, short=True):
        table.add_row(*map(escape, row))
    return table


def verdict(found: Mapping[str, Any]) -> str:
    """Whether refusal was repaired, with the counts and p that say so."""
    what = "refusal repaired" if found["gain_shown"] else "edited, gain not shown beyond chance"
    return f"{what}: {counts(found)}"


def counts(found: Mapping[str, Any]) -> str:
    refused = {name: found["measured"][name]["genuine_refusal"] for name in MODELS}
    p = {name: f"McNemar p = {found['changes'][name]['p']:.2g}" for name in ("harmful", "control")}
    return (
        f"{refused['repaired']['count']} of {refused['repaired']['n']} harmful test prompts refused, "
        f"{refused['compressed']['count']} before ({p['harmful']}), {refused['control']['count']} after the same edit "
        f"along a random direction ({p['control']})"
    )


def model_card(found: Mapping[str, Any]) -> str:
    """README.md of the repaired checkpoint, from ``outcome.outcome``; no prompt and no answer stands in it."""
    environment = Environment(
        loader=PackageLoader("holdfast.report"),
        autoescape=False,  # Markdown; names from outside go through `plain`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters["plain"] = plain
    lines = [f"| {' | '.join(row)} |" for row in [["", *TITLES.values()], *rows(found["measured"])]]
    lines.insert(1, "| --- |" + " ---: |" * len(MODELS))
    text = environment.get_template("model_card.md").render(
        r=found,
        base_models=hub_names(found[m]["name"] for m in ("dense", "compressed")),
        table="\n".join(lines),
        change=change,
        revision=revision,
        prompts=prompts,
        commands=commands(found),
        counts=counts(found),
        edited=edited(found["edit"]),
        kind_of_change=kind_of_change(found["edit"]),
        storage=storage(found),
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def plain(text: str) -> str:
    """A name from outside on one line, without what Markdown and HTML would act on."""
    return re.sub(r"[`|<>\[\]*\\]|\s+", " ", str(text)).strip()


def hub_names(sources: Iterable[str]) -> list[str]:
    """``ORG/NAME`` of those that are the hub's; it knows no other."""
    hub = (source.partition(":")[2].partition("@")[0] for source in sources if source.startswith("hub:"))
    return list(dict.fromkeys(hub))


def revision(model: Mapping[str, Any]) -> str:
    return f" (commit {plain(model['revision'])})" if model.get("revision") else ""


def change(found: Mapping[str, Any]) -> str:
    return f"{found['gained']} gained, {found['lost']} lost, McNemar p = {found['p']:.2g}"


def prompts(found: Mapping[str, Any]) -> str:
    sets = ", ".join(f"{found[role]['n']} {role}" for role in ("train", "validation", "test"))
    return f"{plain(found['source'])}, {sets} (test set: sha256 `{found['test']['sha256'][:16]}…`)"


def commands(found: Mapping[str, Any]) -> dict[str, Any]:
    """Lines for a shell that count refusals anew, and whether they make the test sets too (``whole``)."""
    recipes = {kind: found["prompts"][kind]["recipe"] for kind in SETS}
    lines = [f"holdfast prompts {kind}.jsonl --recipe {quoted(r)}" for kind, r in recipes.items() if r]
    asked = " ".join(f"--prompts {kind}={kind}.jsonl" for kind in SETS)
    lines.append(f"holdfast generate repaired generations {asked} --recipe {quoted(found['generate'])}")
    answers = " ".join(f"--generations generations/{kind}.jsonl" for kind in SETS)
    lines.append(f"holdfast judge verdicts {answers} --recipe {quoted({'judges': [found['judge']['name']]})}")
    return {"lines": lines, "whole": all(recipes.values())}


def quoted(recipe: Mapping[str, Any]) -> str:
    return shlex.quote(json.dumps(recipe))


def edited(edit: Mapping[str, Any]) -> str:
    layers = ", ".join(map(str, edit["layers"]))
    strength = "" if edit["alpha"] is None else f", α {edit['alpha']:g}"
    matrices = " and ".join(f"`{name}`" for name in edit["matrices"])
    return f"{matrices} of layer {layers}: variant `{edit['variant']}`{strength}."


def kind_of_change(edit: Mapping[str, Any]) -> str:
    """What ``methods.aird`` and ``methods.kept_sparsity`` make of a matrix, up to the direction's name."""
    along = "along the dense model's refusal direction"
    if edit["variant"] == "realign":
        own = "what it writes along the compressed model's own direction"
        along = f"that turns {own} to the dense model's refusal direction"
    change = f"a rank-one change of each matrix {along}"
    if edit["keep_sparsity"]:
        return f"Only weights that are not zero were changed, so not by rank one: the nearest such change to {change}"
    return change[0].upper() + change[1:]


def storage(found: Mapping[str, Any]) -> str:
    """What the edit did to the size: densities of a pruned model, bits of a quantized one."""
    before, after = found["compressed"], found["repaired"]
    if before["density"] is not None:
        return f"Density of the linears: {100 * before['density']:.2f} % before, {100 * after['density']:.2f} % after."
    bits = [model["bits_per_weight"] for model in (before, after)]
    return f"The edited matrices are stored dense: {bits[0]:.2f} bits per weight before, {bits[1]:.2f} after."
