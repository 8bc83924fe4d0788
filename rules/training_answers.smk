# The dense model's own answers to the train prompts, for the methods that learn or calibrate on them.


rule training_answers:
    input:
        model="<results>/{model}/dense/checkpoint/provenance.json",
        prompts=expand(
            "<results>/prompts/{role}_train.jsonl", role=["harmful", "harmless"]
        ),
        disjoint=ancient("<results>/prompts/disjoint.json"),
        environment=ANSWER_ENVIRONMENT,
    output:
        multiext(
            "<results>/{model}/dense/training-answers/",
            "harmful_train.jsonl",
            "harmless_train.jsonl",
        ),
    log:
        "<logs>/{model}/dense/training_answers.log",
    benchmark:
        "<benchmarks>/{model}/dense/training_answers.tsv"
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
        "generate {params.model} {params.folder} --prompts {input.prompts[0]} --prompts {input.prompts[1]}"
        " --recipe {params.recipe:q} > {log} 2>&1"
