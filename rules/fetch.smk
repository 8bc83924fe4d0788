# Everything that a study needs of the hub, brought and verified on the machine that Snakemake runs on; then the dense
# model, and judges that are models, as checkpoints.


rule download:
    output:
        "<results>/downloads/{download}.json",
    log:
        "<logs>/downloads/{download}.log",
    benchmark:
        "<benchmarks>/downloads/{download}.tsv"
    priority: 2  # all else waits for it
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=720,
    params:
        recipe=lambda wildcards: json.dumps(DOWNLOADS[wildcards.download]),
    shell:
        "holdfast download {output} --recipe {params.recipe:q} > {log} 2>&1"


rule brought:  # all that needs a network; `snakemake brought` is the first part of a run, by itself
    input:
        needing_network(),
        ANSWER_ENVIRONMENT,
    localrule: True


rule fetch:
    input:
        model_files,
    output:
        "<results>/{model}/dense/checkpoint/provenance.json",
    log:
        "<logs>/{model}/dense/fetch.log",
    benchmark:
        "<benchmarks>/{model}/dense/fetch.tsv"
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("fetch"),
        folder=subpath(output[0], parent=True),
    shell:
        "holdfast fetch {params.folder} --recipe {params.recipe:q} > {log} 2>&1"


use rule fetch as fetch_judge with:
    input:
        judge_files,
    output:
        "<results>/judges/{judge}/checkpoint/provenance.json",
    log:
        "<logs>/judges/{judge}/fetch.log",
    benchmark:
        "<benchmarks>/judges/{judge}/fetch.tsv"
