# Compressions made again, with the dense model's refusals of train prompts in their calibration text.


rule recalibrate:
    input:
        model="<results>/{model}/dense/checkpoint/provenance.json",
        calibration="<results>/prompts/calibration.jsonl",
        answers=training_answers,
        evaluated=expand("<results>/prompts/{role}.jsonl", role=UNSEEN),
        disjoint=ancient("<results>/prompts/disjoint.json"),
    output:
        "<results>/{model}/{compression}/{method}/checkpoint/provenance.json",
    log:
        "<logs>/{model}/{compression}/{method}/recalibrate.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/recalibrate.tsv"
    wildcard_constraints:
        compression=any_of(
            c for c in STUDY.compressions if compressed(c) and not by_gptqmodel(c)
        ),
        method=any_of(methods_of("recalibrate")),
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("recalibrate"),
        model=subpath(input.model, parent=True),
        folder=subpath(output[0], parent=True),
        evaluated=lambda wildcards, input: [
            f"--evaluated={file}" for file in input.evaluated
        ],
        holdfast="holdfast",
    shell:
        "{params.holdfast} recalibrate {params.model} {params.folder} --calibration {input.calibration}"
        " --answers {input.answers} {params.evaluated} --recipe {params.recipe:q} > {log} 2>&1"


use rule recalibrate as recalibrate_by_gptqmodel with:
    input:
        model="<results>/{model}/dense/checkpoint/provenance.json",
        calibration="<results>/prompts/calibration.jsonl",
        answers=training_answers,
        evaluated=expand("<results>/prompts/{role}.jsonl", role=UNSEEN),
        disjoint=ancient("<results>/prompts/disjoint.json"),
        environment=ancient(environment("gptqmodel")),
    wildcard_constraints:
        compression=any_of(filter(by_gptqmodel, STUDY.compressions)),
        method=any_of(methods_of("recalibrate")),
    params:
        recipe=recipe("recalibrate"),
        model=subpath(input.model, parent=True),
        folder=subpath(output[0], parent=True),
        evaluated=lambda wildcards, input: [
            f"--evaluated={file}" for file in input.evaluated
        ],
        holdfast=f"{ENVIRONMENTS}/gptqmodel/bin/holdfast",
