# What is wanted of the grid: files of all cells, of all checkpoints, and who uses a checkpoint.


def of_cells(pattern, wanted=lambda cell: True):
    """A file of every cell that is wanted."""
    return [pattern.format(**c._asdict()) for c in CELLS if wanted(c)]


def of_model_judges():
    """Verdicts of every judge that is a model, and of a headline judge under the attack settings too."""
    cell = "<results>/{model}/{compression}/{method}"
    files = [
        file
        for judge in MODEL_JUDGES
        for file in of_cells(f"{cell}/verdicts/{judge}/attack.jsonl")
    ]
    if (headline := STUDY.evaluate.judges[0]) in MODEL_JUDGES:
        files += of_asked(f"verdicts/{headline}", lambda folder: "attacks/" in folder)
    return files


def of_checkpoints(pattern, wanted=lambda compression: True):
    """A file of every compressed (or dense) checkpoint that is wanted."""
    return [pattern.format(model=m, compression=c) for m, c in CHECKPOINTS if wanted(c)]


def methods_of(stage):
    """The methods whose checkpoints one stage makes: edit, instruct, steer, recalibrate or tune."""
    return [name for name, made_by in STUDY.stages().items() if made_by == stage]


def asked_beside(model):
    """What a model's cells are asked beside the usual prompts, each in a folder of its own: (folder, prompt set)."""
    found = [(f"attacks/{name}", "attack") for name in STUDY.attacks_on(model)]
    found += [("borderline", "borderline")] if "borderline" in PROMPT_ROLES else []
    found += [("pairs", "pairs")] if STUDY.pairs else []
    return found + ([("visual", "visual")] if STUDY.evaluate.visual else [])


def of_asked(what, wanted=lambda folder: True):
    """A file of every cell on each of these, such as their verdicts."""
    return [
        f"<results>/{c.model}/{c.compression}/{c.method}/{folder}/{what}/{prompts}.jsonl"
        for c in CELLS
        for folder, prompts in asked_beside(c.model)
        if wanted(folder)
    ]


def needing_network():
    """What is brought or read on the machine that Snakemake runs on, before any job is submitted, but for the
    environment that answers."""
    files = [f"<results>/downloads/{name}.json" for name in DOWNLOADS]
    files += [f"<results>/prompts/{role}.jsonl" for role in ROLES]
    files += [HELD_OUT] if STUDY.evaluate.perplexity.source.startswith("hub:") else []
    files += ["<results>/pairs/pairs.jsonl"] if STUDY.pairs else []
    files += ["<results>/visual/visual.jsonl"] if STUDY.evaluate.visual else []
    by_another = any(map(by_gptqmodel, STUDY.compressions))
    return files + ([environment("gptqmodel")] if by_another else [])


def edited(cell):
    return cell.method in methods_of("edit")


def compressed(compression):
    return compression != DENSE


def rank(kept, removed):
    """A rule's priority: what most waits for goes first; where checkpoints are removed, what is nearest to done, so
    that few lie there at a time."""
    return kept if STUDY.keep_checkpoints else removed


def discarded():
    """The records of what is removed, of every compressed and edited checkpoint."""
    if STUDY.keep_checkpoints:
        return []
    of_methods = of_cells(
        "<results>/{model}/{compression}/{method}/checkpoint/removed.json",
        lambda cell: cell.method != AS_IS,
    )
    record = "<results>/{model}/{compression}/checkpoint/removed.json"
    return of_methods + of_checkpoints(record, compressed)


def users_of_method(wildcards):
    return users_of_cell(dict(wildcards.items()))


def users_of_cell(names):
    """What is measured on a cell's checkpoint."""
    cell = "<results>/{model}/{compression}/{method}"
    used = [f"{cell}/generations/attack.jsonl", f"{cell}/ability/perplexity.json"]
    used += [
        f"{cell}/{folder}/generations/{prompts}.jsonl"
        for folder, prompts in asked_beside(names["model"])
    ]
    return [file.format(**names) for file in used]


def users_of_compression(wildcards):
    """What is measured on a compression's checkpoint, and on all that is made from it."""
    folder = "<results>/{model}/{compression}"
    used = [f"{folder}/direction", f"{folder}/mediation/verdicts.jsonl"]
    used += [f"{folder}/transfer.json"] if TRANSFERRED else []
    used += [f"{folder}/image-use.json"] if PICTURED else []
    used += [f"{folder}/modalities"] if STUDY.modalities else []
    found = [file.format(**wildcards) for file in used]
    for cell in CELLS_OF[wildcards.model, wildcards.compression]:
        found += users_of_cell(cell._asdict())
        if cell.method != AS_IS:
            made = f"{folder}/{cell.method}/checkpoint/provenance.json"
            found.append(made.format(**wildcards))
    return found
