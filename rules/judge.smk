# Verdicts: every answer, by every judge; substring lists at once, each model in a job of its own.


rule judge:
    input:
        attack="<results>/{model}/{compression}/{method}/generations/attack.jsonl",
        over_refusal="<results>/{model}/{compression}/{method}/generations/over_refusal.jsonl",
    output:
        attack="<results>/{model}/{compression}/{method}/verdicts/attack.jsonl",
        over_refusal="<results>/{model}/{compression}/{method}/verdicts/over_refusal.jsonl",
    log:
        "<logs>/{model}/{compression}/{method}/judge.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/judge.tsv"
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        recipe=recipe("judge"),
        folder=subpath(output.attack, parent=True),
    shell:
        "holdfast judge {params.folder} --generations {input.attack}"
        " --generations {input.over_refusal} --recipe {params.recipe:q} > {log} 2>&1"


rule judge_by_model:
    input:
        judge="<results>/judges/{judge}/checkpoint/provenance.json",
        environment=ANSWER_ENVIRONMENT,
        attack="<results>/{model}/{compression}/{method}/generations/attack.jsonl",
        over_refusal="<results>/{model}/{compression}/{method}/generations/over_refusal.jsonl",
    output:
        attack="<results>/{model}/{compression}/{method}/verdicts/{judge}/attack.jsonl",
        over_refusal="<results>/{model}/{compression}/{method}/verdicts/{judge}/over_refusal.jsonl",
    log:
        "<logs>/{model}/{compression}/{method}/judge-{judge}.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/judge-{judge}.tsv"
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("judge-by-model"),
        judge=subpath(input.judge, parent=True),
        folder=subpath(output[0], parent=True),
        generations=lambda wildcards, input: [
            f"--generations={f}" for f in input if f.endswith(".jsonl")
        ],
    shell:
        f"{ANSWER} "
        "judge-by-model {params.judge} {params.folder} {params.generations}"
        " --recipe {params.recipe:q} > {log} 2>&1"


use rule judge_by_model as judge_attack_by_model with:
    input:
        judge="<results>/judges/{judge}/checkpoint/provenance.json",
        environment=ANSWER_ENVIRONMENT,
        attack="<results>/{model}/{compression}/{method}/attacks/{attack}/generations/attack.jsonl",
    output:
        "<results>/{model}/{compression}/{method}/attacks/{attack}/verdicts/{judge}/attack.jsonl",
    log:
        "<logs>/{model}/{compression}/{method}/attacks/{attack}/judge-{judge}.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/attacks/{attack}/judge-{judge}.tsv"
