# Compressed checkpoints tuned to refuse again: a short LoRA, merged.


rule tune:
    input:
        model="<results>/{model}/{compression}/checkpoint/provenance.json",
        answers=rules.training_answers.output,
        evaluated=expand("<results>/prompts/{role}.jsonl", role=UNSEEN),
        disjoint=ancient("<results>/prompts/disjoint.json"),
    output:
        tuning="<results>/{model}/{compression}/{method}/checkpoint/tuning.json",
        checkpoint="<results>/{model}/{compression}/{method}/checkpoint/provenance.json",
    log:
        "<logs>/{model}/{compression}/{method}/tune.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/tune.tsv"
    wildcard_constraints:
        compression=any_of(filter(compressed, STUDY.compressions)),
        method=any_of(methods_of("tune")),
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("tune"),
        model=subpath(input.model, parent=True),
        folder=subpath(output.tuning, parent=True),
        evaluated=lambda wildcards, input: [
            f"--evaluated={file}" for file in input.evaluated
        ],
    shell:
        "holdfast tune {params.model} {params.folder} --harmful-answers {input.answers[0]}"
        " --harmless-answers {input.answers[1]} {params.evaluated} --recipe {params.recipe:q} > {log} 2>&1"
