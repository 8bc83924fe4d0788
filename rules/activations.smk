# The residual stream of the train prompts.


rule activations:
    input:
        model="<results>/{model}/{compression}/checkpoint/provenance.json",
        harmful="<results>/prompts/harmful_train.jsonl",
        harmless="<results>/prompts/harmless_train.jsonl",
        disjoint=ancient("<results>/prompts/disjoint.json"),
    output:
        directory("<results>/{model}/{compression}/activations"),
    log:
        "<logs>/{model}/{compression}/activations.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/activations.tsv"
    priority: rank(1, 1)
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("activations"),
        model=subpath(input.model, parent=True),
    shell:
        "holdfast activations {params.model} {output} --harmful {input.harmful}"
        " --harmless {input.harmless} --recipe {params.recipe:q} > {log} 2>&1"
