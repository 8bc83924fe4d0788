# What else gives a compressed model its refusal back: a safety system prompt, steering at run time.


rule instruct:
    input:
        model="<results>/{model}/{compression}/checkpoint/provenance.json",
    output:
        "<results>/{model}/{compression}/{method}/checkpoint/provenance.json",
    log:
        "<logs>/{model}/{compression}/{method}/instruct.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/instruct.tsv"
    wildcard_constraints:
        compression=any_of(filter(compressed, STUDY.compressions)),
        method=any_of(methods_of("instruct")),
    priority: rank(1, 1)
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("instruct"),
        model=subpath(input.model, parent=True),
        folder=subpath(output[0], parent=True),
    shell:
        "holdfast instruct {params.model} {params.folder} --recipe {params.recipe:q} > {log} 2>&1"


rule steer:
    input:
        model="<results>/{model}/{compression}/checkpoint/provenance.json",
        direction="<results>/{model}/dense/direction",
        own_direction="<results>/{model}/{compression}/direction",
        harmful="<results>/prompts/harmful_validation.jsonl",
        harmless="<results>/prompts/harmless_validation.jsonl",
        disjoint=ancient("<results>/prompts/disjoint.json"),
        matched=matched("steer", "steer.json"),
    output:
        steering="<results>/{model}/{compression}/{method}/checkpoint/steer.json",
        checkpoint="<results>/{model}/{compression}/{method}/checkpoint/provenance.json",
    log:
        "<logs>/{model}/{compression}/{method}/steer.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/{method}/steer.tsv"
    wildcard_constraints:
        compression=any_of(filter(compressed, STUDY.compressions)),
        method=any_of(methods_of("steer")),
    priority: rank(1, 1)
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("steer"),
        model=subpath(input.model, parent=True),
        folder=subpath(output.steering, parent=True),
        matched_to=matched_to,
    shell:
        "holdfast steer {params.model} {params.folder} --direction {input.direction}"
        " --own-direction {input.own_direction} --harmful {input.harmful} --harmless {input.harmless}"
        " --recipe {params.recipe:q} {params.matched_to} > {log} 2>&1"
