# Holdfast: does refusal hold when a chat model is compressed, why not, and can it be repaired?
# `snakemake -c2` runs config/demo.yaml, `snakemake -c2 --configfile FILE` another study. Reading and
# checking the study, and what the rules share, is in rules/common.smk, what jobs read in inputs.smk, what is wanted of the
# grid in targets.smk; the rules follow the data's way.
from snakemake.utils import min_version

min_version("9.27")


include: "rules/common.smk"
include: "rules/inputs.smk"
include: "rules/targets.smk"
include: "rules/run.smk"
include: "rules/prompts.smk"
include: "rules/pairs.smk"
include: "rules/environments.smk"
include: "rules/fetch.smk"
include: "rules/compress.smk"
include: "rules/activations.smk"
include: "rules/direction.smk"
include: "rules/compare.smk"
include: "rules/transfer.smk"
include: "rules/mediate.smk"
include: "rules/image_use.smk"
include: "rules/modalities.smk"
include: "rules/edit.smk"
include: "rules/rivals.smk"
include: "rules/training_answers.smk"
include: "rules/recalibrate.smk"
include: "rules/tune.smk"
include: "rules/generate.smk"
include: "rules/judge.smk"
include: "rules/attack.smk"
include: "rules/visual.smk"
include: "rules/ability.smk"
include: "rules/discard.smk"
include: "rules/tables.smk"
include: "rules/figures.smk"
include: "rules/report.smk"
include: "rules/retrain.smk"
include: "rules/train_vision.smk"


rule all:
    default_target: True
    input:
        "<results>/tables/refusal.csv",
        "<results>/figures",
        "<results>/report/index.html",
        discarded(),


onstart:
    begin()


onsuccess:
    end()
    if (page := Path(f"results/{STUDY.study}/report/index.html")).is_file():
        print(f"Report: {page}")


onerror:
    tell_failures(workflow)
    write_with_gaps(workflow)
    end()
