# The dense model, and judges that are models, brought from their sources.


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
    threads: 1
    resources:
        mem_mb=8000,
        runtime=120,
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
