# Pruned, quantized and published checkpoints.


rule compress:
    input:
        model="<results>/{model}/dense/checkpoint/provenance.json",
        calibration=calibration_text,
        published=published_files,
        disjoint=ancient("<results>/prompts/disjoint.json"),
    output:
        "<results>/{model}/{compression}/checkpoint/provenance.json",
    log:
        "<logs>/{model}/{compression}/compress.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/compress.tsv"
    wildcard_constraints:
        compression=any_of(
            c for c in STUDY.compressions if compressed(c) and not by_gptqmodel(c)
        ),
    priority: rank(1, 0)
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("compress"),
        model=subpath(input.model, parent=True),
        folder=subpath(output[0], parent=True),
        holdfast="holdfast",
    shell:
        "{params.holdfast} compress {params.model} {params.folder} --calibration {input.calibration}"
        " --recipe {params.recipe:q} > {log} 2>&1"


use rule compress as compress_by_gptqmodel with:
    input:
        model="<results>/{model}/dense/checkpoint/provenance.json",
        calibration=calibration_text,
        disjoint=ancient("<results>/prompts/disjoint.json"),
        environment=ancient(environment("gptqmodel")),
    wildcard_constraints:
        compression=any_of(filter(by_gptqmodel, STUDY.compressions)),
    params:
        recipe=recipe("compress"),
        model=subpath(input.model, parent=True),
        folder=subpath(output[0], parent=True),
        holdfast=f"{ENVIRONMENTS}/gptqmodel/bin/holdfast",
