# The compressed model's direction beside the dense model's, with nulls.


rule compare:
    input:
        dense=multiext("<results>/{model}/dense/", "direction", "activations"),
        compressed=multiext(
            "<results>/{model}/{compression}/", "direction", "activations"
        ),
    output:
        sources="<results>/{model}/{compression}/comparison.json",
        table="<results>/{model}/{compression}/comparison.csv",
    log:
        "<logs>/{model}/{compression}/compare.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/compare.tsv"
    wildcard_constraints:
        compression=any_of(filter(compressed, STUDY.compressions)),
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=15,
    params:
        recipe=recipe("compare"),
        dense=lambda wildcards, input: os.path.dirname(input.dense[0]),
        compressed=lambda wildcards, input: os.path.dirname(input.compressed[0]),
    shell:
        "holdfast compare {output.sources} --table {output.table}"
        " --dense {params.dense} --compressed {params.compressed}"
        " --recipe {params.recipe:q} > {log} 2>&1"
