# Does the dense model's direction act in the compressed model, and the other way round: scores on validation prompts.


rule transfer:
    input:
        dense=multiext("<results>/{model}/dense/", "direction", "activations"),
        dense_model="<results>/{model}/dense/checkpoint/provenance.json",
        compressed=multiext(
            "<results>/{model}/{compression}/", "direction", "activations"
        ),
        model="<results>/{model}/{compression}/checkpoint/provenance.json",
        harmful="<results>/prompts/harmful_validation.jsonl",
        harmless="<results>/prompts/harmless_validation.jsonl",
        disjoint=ancient("<results>/prompts/disjoint.json"),
    output:
        "<results>/{model}/{compression}/transfer.json",
    log:
        "<logs>/{model}/{compression}/transfer.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/transfer.tsv"
    wildcard_constraints:
        compression=any_of(filter(compressed, STUDY.compressions)),
    priority: rank(0, 2)
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("transfer"),
        dense=lambda wildcards, input: os.path.dirname(input.dense[0]),
        compressed=lambda wildcards, input: os.path.dirname(input.compressed[0]),
    shell:
        "holdfast transfer {output} --dense {params.dense} --compressed {params.compressed}"
        " --harmful {input.harmful} --harmless {input.harmless}"
        " --recipe {params.recipe:q} > {log} 2>&1"
