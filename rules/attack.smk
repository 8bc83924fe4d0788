# Beside a cell's own answers: the attack prompts under other settings, borderline prompts, pairs, and questions about
# images, each a folder with generations/ and verdicts/ of its own, so that adding one runs nothing else.


rule attack:
    input:
        model=cell_checkpoint,
        prompts="<results>/prompts/attack.jsonl",
        suffix=suffix_file,
        disjoint=ancient("<results>/prompts/disjoint.json"),
        environment=ANSWER_ENVIRONMENT,
    output:
        "<results>/{model}/{compression}/{method}/attacks/{attack}/generations/attack.jsonl",
    log:
        "<logs>/{model}/{compression}/{method}/attacks/{attack}/generate.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/attacks/{attack}/generate.tsv"
    priority: rank(0, 2)
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("generate"),
        model=subpath(input.model, parent=True),
        folder=subpath(output[0], parent=True),
    shell:
        f"{ANSWER} "
        "generate {params.model} {params.folder} --prompts {input.prompts}"
        " --recipe {params.recipe:q} > {log} 2>&1"


use rule attack as borderline with:
    input:
        model=cell_checkpoint,
        prompts="<results>/prompts/borderline.jsonl",
        disjoint=ancient("<results>/prompts/disjoint.json"),
        environment=ANSWER_ENVIRONMENT,
    output:
        "<results>/{model}/{compression}/{method}/borderline/generations/borderline.jsonl",
    log:
        "<logs>/{model}/{compression}/{method}/borderline/generate.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/borderline/generate.tsv"


use rule attack as answer_pairs with:
    input:
        model=cell_checkpoint,
        prompts="<results>/pairs/pairs.jsonl",
        environment=ANSWER_ENVIRONMENT,
    output:
        "<results>/{model}/{compression}/{method}/pairs/generations/pairs.jsonl",
    log:
        "<logs>/{model}/{compression}/{method}/pairs/generate.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/pairs/generate.tsv"


use rule attack as answer_visual with:
    input:
        model=cell_checkpoint,
        prompts="<results>/visual/visual.jsonl",
        environment=ANSWER_ENVIRONMENT,
    output:
        "<results>/{model}/{compression}/{method}/visual/generations/visual.jsonl",
    log:
        "<logs>/{model}/{compression}/{method}/visual/generate.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/visual/generate.tsv"


rule judge_attack:
    input:
        "<results>/{model}/{compression}/{method}/attacks/{attack}/generations/attack.jsonl",
    output:
        "<results>/{model}/{compression}/{method}/attacks/{attack}/verdicts/attack.jsonl",
    log:
        "<logs>/{model}/{compression}/{method}/attacks/{attack}/judge.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/attacks/{attack}/judge.tsv"
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        recipe=recipe("judge"),
        folder=subpath(output[0], parent=True),
    shell:
        "holdfast judge {params.folder} --generations {input} --recipe {params.recipe:q} > {log} 2>&1"


use rule judge_attack as judge_borderline with:
    input:
        "<results>/{model}/{compression}/{method}/borderline/generations/borderline.jsonl",
    output:
        "<results>/{model}/{compression}/{method}/borderline/verdicts/borderline.jsonl",
    log:
        "<logs>/{model}/{compression}/{method}/borderline/judge.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/borderline/judge.tsv"


use rule judge_attack as judge_pairs with:
    input:
        "<results>/{model}/{compression}/{method}/pairs/generations/pairs.jsonl",
    output:
        "<results>/{model}/{compression}/{method}/pairs/verdicts/pairs.jsonl",
    log:
        "<logs>/{model}/{compression}/{method}/pairs/judge.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/pairs/judge.tsv"
