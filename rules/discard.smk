# Compressed and edited checkpoints, removed as soon as nothing needs them (keep_checkpoints: false). Their records stay,
# so that nothing is made again for their sake; a job that needs such a checkpoint later makes it again itself.


rule discard:
    input:
        model="<results>/{model}/{compression}/{method}/checkpoint/provenance.json",
        used=users_of_method,
    output:
        "<results>/{model}/{compression}/{method}/checkpoint/removed.json",
    log:
        "<logs>/{model}/{compression}/{method}/discard.log",
    priority: 3  # room first
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=15,
    params:
        folder=subpath(output[0], parent=True),
    shell:
        "holdfast discard {params.folder} > {log} 2>&1"


use rule discard as discard_compressed with:
    input:
        model="<results>/{model}/{compression}/checkpoint/provenance.json",
        used=users_of_compression,
    output:
        "<results>/{model}/{compression}/checkpoint/removed.json",
    log:
        "<logs>/{model}/{compression}/discard.log",
    wildcard_constraints:
        compression=any_of(filter(compressed, STUDY.compressions)),
