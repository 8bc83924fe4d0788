# Every cell's answers to the evaluation's prompts.


rule generate:
    input:
        model=cell_checkpoint,
        attack="<results>/prompts/attack.jsonl",
        over_refusal="<results>/prompts/over_refusal.jsonl",
        disjoint=ancient("<results>/prompts/disjoint.json"),
        environment=ANSWER_ENVIRONMENT,
    output:
        attack="<results>/{model}/{compression}/{method}/generations/attack.jsonl",
        over_refusal="<results>/{model}/{compression}/{method}/generations/over_refusal.jsonl",
    log:
        "<logs>/{model}/{compression}/{method}/generate.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/generate.tsv"
    priority: rank(0, 2)
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("generate"),
        model=subpath(input.model, parent=True),
        folder=subpath(output.attack, parent=True),
    shell:
        f"{ANSWER} "
        "generate {params.model} {params.folder} --prompts attack={input.attack}"
        " --prompts over_refusal={input.over_refusal} --recipe {params.recipe:q} > {log} 2>&1"
