# Does the direction mediate refusal: ablate it, add it, the dense model's and random ones, on held-out prompts.


rule mediate:
    input:
        model="<results>/{model}/{compression}/checkpoint/provenance.json",
        direction="<results>/{model}/{compression}/direction",
        dense=of_dense("direction"),
        harmful="<results>/prompts/attack.jsonl",
        harmless="<results>/prompts/over_refusal.jsonl",
        disjoint=ancient("<results>/prompts/disjoint.json"),
    output:
        verdicts="<results>/{model}/{compression}/mediation/verdicts.jsonl",
        answers="<results>/{model}/{compression}/mediation/answers.jsonl",
    log:
        "<logs>/{model}/{compression}/mediate.log",
    benchmark:
        "<benchmarks>/{model}/{compression}/mediate.tsv"
    priority: rank(0, 2)
    conda:
        "../envs/core.yaml"
    threads: needs("threads")
    resources:
        **NEEDS,
    params:
        recipe=recipe("mediate"),
        model=subpath(input.model, parent=True),
        folder=subpath(output.verdicts, parent=True),
        dense=lambda wildcards, input: [f"--dense-direction={d}" for d in input.dense],
    shell:
        "holdfast mediate {params.model} {params.folder} --direction {input.direction} {params.dense}"
        " --harmful {input.harmful} --harmless {input.harmless}"
        " --recipe {params.recipe:q} > {log} 2>&1"
