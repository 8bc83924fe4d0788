# Harmful inputs beside their benign counterfactuals, checked against all that is learnt or chosen on.

# Whether pairs have images, so that it is measured what they change.
PICTURED = STUDY.pairs is not None and STUDY.pairs.pictured()
# How the roles end that something is learnt or chosen on.
LEARNT = ("_train", "_validation", "calibration")
# The user's own files among the sets that pairs are built from.
PAIR_FILES = local_files(
    *(
        s.source
        for s in (STUDY.pairs.sources.values() if STUDY.pairs else [])
        if s.source.startswith("file:")
    )
)


rule pairs:
    input:
        sources=PAIR_FILES,
        learnt=expand(
            "<results>/prompts/{role}.jsonl",
            role=[role for role in ROLES if role.endswith(LEARNT)],
        ),
    output:
        "<results>/pairs/pairs.jsonl",
    log:
        "<logs>/pairs.log",
    benchmark:
        "<benchmarks>/pairs.tsv"
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        recipe=recipe("pairs"),
        folder=subpath(output[0], parent=True),
        against=lambda wildcards, input: [f"--against={file}" for file in input.learnt],
    shell:
        "(holdfast pairs build {params.folder} --recipe {params.recipe:q}"
        " && holdfast pairs check {params.folder} {params.against}) > {log} 2>&1"
