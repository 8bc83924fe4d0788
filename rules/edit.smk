# Edited checkpoints: AIRD (a reconstruction) and its random controls.


rule edit:
    input:
        model="<results>/{model}/{compression}/checkpoint/provenance.json",
        dense="<results>/{model}/dense/checkpoint/provenance.json",
        direction="<results>/{model}/dense/direction",
        own_direction="<results>/{model}/{compression}/direction",
        harmful="<results>/prompts/harmful_validation.jsonl",
        harmless="<results>/prompts/harmless_validation.jsonl",
        harmful_train="<results>/prompts/harmful_train.jsonl",
        harmless_train="<results>/prompts/harmless_train.jsonl",
        disjoint=ancient("<results>/prompts/disjoint.json"),
        matched=matched("edit", "edit.json"),
    output:
        edit="<results>/{model}/{compression}/{method}/checkpoint/edit.json",
        checkpoint="<results>/{model}/{compression}/{method}/checkpoint/provenance.json",
    log:
        "<logs>/{model}/{compression}/{method}/edit.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/edit.tsv"
    wildcard_constraints:
        compression=any_of(filter(compressed, STUDY.compressions)),
        method=any_of(methods_of("edit")),
    priority: rank(1, 1)
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("edit"),
        model=subpath(input.model, parent=True),
        dense=subpath(input.dense, parent=True),
        folder=subpath(output.edit, parent=True),
        matched_to=matched_to,
    shell:
        "holdfast edit {params.model} {params.folder} --dense {params.dense} --direction {input.direction}"
        " --own-direction {input.own_direction} --harmful {input.harmful}"
        " --harmless {input.harmless} --harmful-train {input.harmful_train}"
        " --harmless-train {input.harmless_train}"
        " --recipe {params.recipe:q} {params.matched_to} > {log} 2>&1"
