# Benign questions about images, with their answers: what a compressed vision-language model still sees.


rule visual:
    input:
        source=visual_files,
        calibration="<results>/prompts/calibration.jsonl",
    output:
        "<results>/visual/visual.jsonl",
    log:
        "<logs>/visual.log",
    benchmark:
        "<benchmarks>/visual.tsv"
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        recipe=recipe("visual"),
        folder=subpath(output[0], parent=True),
    shell:
        "holdfast visual {params.folder} --recipe {params.recipe:q} --learnt-on {input.calibration} > {log} 2>&1"


rule score_visual:
    input:
        answers="<results>/{model}/{compression}/{method}/visual/generations/visual.jsonl",
        questions="<results>/visual/visual.jsonl",
    output:
        "<results>/{model}/{compression}/{method}/visual/verdicts/visual.jsonl",
    log:
        "<logs>/{model}/{compression}/{method}/visual/score.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/visual/score.tsv"
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        recipe=recipe("score"),
        folder=subpath(output[0], parent=True),
    shell:
        "holdfast score {params.folder} --generations {input.answers} --questions {input.questions}"
        " --recipe {params.recipe:q} > {log} 2>&1"
