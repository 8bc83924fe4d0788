# Every measure of every cell, in one tidy table.


rule tables:
    input:
        config=ancient(STUDY_FILE),
        attack=of_cells(
            "<results>/{model}/{compression}/{method}/verdicts/attack.jsonl"
        ),
        over_refusal=of_cells(
            "<results>/{model}/{compression}/{method}/verdicts/over_refusal.jsonl"
        ),
        asked=of_asked("verdicts"),
        by_models=of_model_judges(),
        zero_shot=of_cells(
            "<results>/{model}/{compression}/{method}/ability/zero_shot.json"
        ),
        perplexity=of_cells(
            "<results>/{model}/{compression}/{method}/ability/perplexity.json"
        ),
        edits=of_cells(
            "<results>/{model}/{compression}/{method}/checkpoint/edit.json", edited
        ),
        directions=of_checkpoints("<results>/{model}/{compression}/direction"),
        mediations=of_checkpoints(
            "<results>/{model}/{compression}/mediation/verdicts.jsonl"
        ),
        transfers=of_checkpoints(
            "<results>/{model}/{compression}/transfer.json",
            lambda compression: TRANSFERRED and compressed(compression),
        ),
        image_use=of_checkpoints(
            "<results>/{model}/{compression}/image-use.json", lambda _: PICTURED
        ),
        comparisons=of_checkpoints(
            "<results>/{model}/{compression}/comparison.json", compressed
        ),
        cosines=of_checkpoints(
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
