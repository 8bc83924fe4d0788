# Does the image matter: what answers and refusals of pairs change by when it is taken away or replaced.


rule image_use:
    input:
        model="<results>/{model}/{compression}/checkpoint/provenance.json",
        direction="<results>/{model}/{compression}/direction",
        pairs="<results>/pairs/pairs.jsonl",
    output:
        "<results>/{model}/{compression}/image-use.json",
    log:
        "<logs>/{model}/{compression}/image-use.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/image-use.tsv"
    priority: rank(0, 2)
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("image-use"),
        model=subpath(input.model, parent=True),
    shell:
        "holdfast image-use {params.model} {output} --pairs {input.pairs} --direction {input.direction}"
        " --recipe {params.recipe:q} > {log} 2>&1"
