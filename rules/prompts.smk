# Prompt sets of every role, and the proof that they share no prompt and calibration no evaluated text.


rule prompts:
    input:
        prompt_files,
    output:
        "<results>/prompts/{role}.jsonl",
    log:
        "<logs>/prompts/{role}.log",
    benchmark:
        "<benchmarks>/prompts/{role}.tsv"
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        recipe=recipe("prompts"),
    shell:
        "holdfast prompts {output} --recipe {params.recipe:q} > {log} 2>&1"


rule held_out:
    output:
        HELD_OUT,
    log:
        "<logs>/prompts/held_out.log",
    benchmark:
        "<benchmarks>/prompts/held_out.tsv"
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        recipe=recipe("text"),
    shell:
        "holdfast text {output} --recipe {params.recipe:q} > {log} 2>&1"


rule disjoint:
    input:
        prompts=expand("<results>/prompts/{role}.jsonl", role=PROMPT_ROLES),
        calibration="<results>/prompts/calibration.jsonl",
        evaluated=ability_files,
    output:
        "<results>/prompts/disjoint.json",
    log:
        "<logs>/prompts/disjoint.log",
    benchmark:
        "<benchmarks>/prompts/disjoint.tsv"
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        recipe=recipe("disjoint"),
        prompts=lambda wildcards, input: [f"--prompts={file}" for file in input.prompts],
    shell:
        "holdfast disjoint {output} {params.prompts} --calibration {input.calibration}"
        " --recipe {params.recipe:q} > {log} 2>&1"
