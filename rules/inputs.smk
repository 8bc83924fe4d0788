# What jobs read: input functions, and the user's own files behind them.


def local_files(*sources):
    """The user's own files behind ``file:`` and ``path:`` sources: changing one makes its results stale.

    Of a ``hub:`` model, the record of its download, which is pinned: downloading it again makes nothing stale.
    """
    files = []
    for source in sources:
        kind, _, where = str(source).partition(":")
        if kind == "file":
            files.append(where)
        elif kind == "hub":
            name = download_name(str(source))
            files.append(ancient(f"<results>/downloads/{name}.json"))
        elif kind == "path":
            found = Path(where).expanduser()
            files += [str(p) for p in sorted(found.glob("*.safetensors"))]
            files += [str(p) for p in sorted(found.glob("*config.json"))]
    return files


def prompt_files(wildcards):
    return data_files(STUDY.recipe("prompts", role=wildcards.role)["source"])


def visual_files(wildcards):
    source = STUDY.evaluate.visual.source or ""
    named = files_named(STUDY.recipe("visual"), STUDY.evaluate.visual.image)
    return data_files(source) + named


def data_files(source):
    """Of a data set from the hub none: the rule that reads it brings it."""
    return [] if source.startswith("hub:") else local_files(source)


def suffix_file(wildcards):
    return local_files(STUDY.evaluate.attacks[wildcards.attack].suffix)


def model_files(wildcards):
    model = STUDY.models[wildcards.model]
    return local_files(model.source, model.adapter)


def judge_files(wildcards):
    return local_files(STUDY.evaluate.judge_models[wildcards.judge].source)


def of_dense(what):
    """An input function: of a compressed model, what there is of the dense one, such as its direction."""

    def of_job(wildcards):
        dense = wildcards.compression == DENSE
        return [] if dense else [f"<results>/{wildcards.model}/{DENSE}/{what}"]

    return of_job


def published_files(wildcards):
    recipe = STUDY.recipe("compress", compression=wildcards.compression)
    return local_files(recipe.get("source"))


def ability_files(wildcards):
    section = STUDY.evaluate
    text = section.perplexity.source
    files = [HELD_OUT] if text.startswith("hub:") else local_files(text)
    if TASKS in DOWNLOADS:
        files.append(ancient(f"<results>/downloads/{TASKS}.json"))
    if section.zero_shot.folder:
        files += map(str, sorted(Path(section.zero_shot.folder).glob("*.jsonl")))
    return files


def calibration_text(wildcards):
    """Calibration text; a compression that does not use it is not made stale by it."""
    text = "<results>/prompts/calibration.jsonl"
    uses = "samples" in STUDY.recipe("compress", compression=wildcards.compression)
    return text if uses else ancient(text)


# A checkpoint is known by the record in it, written last, and not declared as a directory(): Snakemake
# would keep its time in a file inside, which copies of the checkpoint share (hard links), so that every
# copy would make its source look new.
@asked_often
def cell_checkpoint(wildcards):
    """The checkpoint a cell is measured on; the method as-is has none of its own."""
    if wildcards.method == AS_IS:
        return "<results>/{model}/{compression}/checkpoint/provenance.json"
    return "<results>/{model}/{compression}/{method}/checkpoint/provenance.json"


def matched(stage, record):
    """An input function: the record of the finished method that a matched control takes its settings from."""

    def of_job(wildcards):
        target = STUDY.recipe(stage, method=wildcards.method).get("matched_to")
        return (
            f"<results>/{{model}}/{{compression}}/{target}/checkpoint/{record}"
            if target
            else []
        )

    return of_job


def matched_to(wildcards, input):
    return f"--matched-to {input.matched}" if input.get("matched") else ""


def training_answers(wildcards):
    """The dense model's answers that a new calibration mixes in: refusals of harmful prompts, or the control's."""
    kind = STUDY.methods[wildcards.method].recalibrate
    role = "harmful_train" if kind == "refusals" else "harmless_train"
    return f"<results>/{{model}}/{DENSE}/training-answers/{role}.jsonl"
