# Every measure of every cell, in one tidy table.


rule tables:
    # Files of every cell are listed for the job itself, and not again in each job that reads the rules.
    input:
        config=ancient(STUDY_FILE),
        attack=lambda wildcards: of_cells(
            "<results>/{model}/{compression}/{method}/verdicts/attack.jsonl"
        ),
        over_refusal=lambda wildcards: of_cells(
            "<results>/{model}/{compression}/{method}/verdicts/over_refusal.jsonl"
        ),
        asked=lambda wildcards: of_asked("verdicts"),
        by_models=lambda wildcards: of_model_judges(),
        zero_shot=lambda wildcards: of_cells(
            "<results>/{model}/{compression}/{method}/ability/zero_shot.json"
        ),
        perplexity=lambda wildcards: of_cells(
            "<results>/{model}/{compression}/{method}/ability/perplexity.json"
        ),
        edits=lambda wildcards: of_cells(
            "<results>/{model}/{compression}/{method}/checkpoint/edit.json", edited
        ),
        directions=lambda wildcards: of_checkpoints(
            "<results>/{model}/{compression}/direction"
        ),
        mediations=lambda wildcards: of_checkpoints(
            "<results>/{model}/{compression}/mediation/verdicts.jsonl"
        ),
        transfers=lambda wildcards: of_checkpoints(
            "<results>/{model}/{compression}/transfer.json",
            lambda compression: TRANSFERRED and compressed(compression),
        ),
        image_use=lambda wildcards: of_checkpoints(
            "<results>/{model}/{compression}/image-use.json", lambda _: PICTURED
        ),
        modalities=lambda wildcards: of_checkpoints(
            "<results>/{model}/{compression}/modalities", lambda _: STUDY.modalities
        ),
        comparisons=lambda wildcards: of_checkpoints(
            "<results>/{model}/{compression}/comparison.json", compressed
        ),
        cosines=lambda wildcards: of_checkpoints(
            "<results>/{model}/{compression}/comparison.csv", compressed
        ),
    output:
        csv="<results>/tables/refusal.csv",
        md="<results>/tables/refusal.md",
        tex="<results>/tables/refusal.tex",
        claims="<results>/tables/claims.csv",
        leaderboard="<results>/tables/leaderboard.csv",
        costs="<results>/tables/costs.csv",
    log:
        "<logs>/tables.log",
    benchmark:
        "<benchmarks>/tables.tsv"
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        recipe=recipe("tables"),
        folder=subpath(output.csv, parent=True),
        results=subpath(output.csv, ancestor=2),
    shell:
        "holdfast tables {params.folder} --config {input.config} --results {params.results}"
        " > {log} 2>&1"
