# The refusal direction: every candidate's scores, and the choice.


rule direction:
    input:
        model="<results>/{model}/{compression}/checkpoint/provenance.json",
        activations="<results>/{model}/{compression}/activations",
        harmful="<results>/prompts/harmful_validation.jsonl",
        harmless="<results>/prompts/harmless_validation.jsonl",
        disjoint=ancient("<results>/prompts/disjoint.json"),
    output:
        directory("<results>/{model}/{compression}/direction"),
    log:
        "<logs>/{model}/{compression}/direction.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/direction.tsv"
    priority: rank(1, 1)
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("direction"),
        model=subpath(input.model, parent=True),
    shell:
        "holdfast direction {params.model} {output} --activations {input.activations}"
        " --harmful {input.harmful} --harmless {input.harmless}"
        " --recipe {params.recipe:q} > {log} 2>&1"
