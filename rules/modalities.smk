# Directions found on text, images and drawn text: their cosines, and what they do to pairs of each modality.

# What is drawn: the study's own train prompts, unless directions are learnt on a benchmark's train split.
DRAWN = {
    kind: f"<results>/prompts/{kind}_train.jsonl"
    for kind in ("harmful", "harmless")
    if STUDY.modalities and STUDY.modalities.learnt_on == "prompts"
}


rule draw_prompts:
    input:
        **DRAWN,
    output:
        "<results>/modalities/pairs.jsonl",
    log:
        "<logs>/draw_prompts.log",
    benchmark:
        "<benchmarks>/draw_prompts.tsv"
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        recipe=recipe("draw"),
        folder=subpath(output[0], parent=True),
        sets=lambda wildcards, input: [f"--{kind}={input[kind]}" for kind in DRAWN],
    shell:
        "holdfast draw {params.folder} {params.sets} --recipe {params.recipe:q} > {log} 2>&1"


rule modalities:
    input:
        model="<results>/{model}/{compression}/checkpoint/provenance.json",
        direction="<results>/{model}/{compression}/direction",
        activations="<results>/{model}/{compression}/activations",
        prompts="<results>/modalities/pairs.jsonl",
        pairs="<results>/pairs/pairs.jsonl",
        dense=of_dense("modalities"),
    output:
        directory("<results>/{model}/{compression}/modalities"),
    log:
        "<logs>/{model}/{compression}/modalities.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/modalities.tsv"
    priority: rank(0, 2)
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("modalities"),
        model=subpath(input.model, parent=True),
        dense=lambda wildcards, input: [f"--dense={d}" for d in input.dense],
    shell:
        "holdfast modalities {params.model} {output} --direction {input.direction}"
        " --activations {input.activations} --prompts {input.prompts} --pairs {input.pairs}"
        " {params.dense} --recipe {params.recipe:q} > {log} 2>&1"
