# What else a cell can do: zero-shot accuracy and perplexity.


rule ability:
    input:
        model=cell_checkpoint,
        texts=ability_files,
    output:
        lm_eval="<results>/{model}/{compression}/{method}/ability/lm_eval.json",
        zero_shot="<results>/{model}/{compression}/{method}/ability/zero_shot.json",
        perplexity="<results>/{model}/{compression}/{method}/ability/perplexity.json",
    log:
        "<logs>/{model}/{compression}/{method}/ability.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/ability.tsv"
    priority: rank(0, 2)
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("ability"),
        model=subpath(input.model, parent=True),
        folder=subpath(output.perplexity, parent=True),
    shell:
        "holdfast ability {params.model} {params.folder} --recipe {params.recipe:q} > {log} 2>&1"
