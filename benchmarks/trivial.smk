# Snakemake's own part of what planning costs: a grid of about as many jobs, inputs and outputs as that of cluster.py, in
# rules of nothing but file names, without input functions, parameters, resources or environments. `models` in the
# config says how large; with `chains` instead, so many chains of three jobs, the smallest that can be.
import atexit
import gc

gc.set_threshold(200_000, 30, 30)  # as in rules/run.smk
atexit.register(gc.freeze)

MODELS = [f"model-{n}" for n in range(config.get("models", 0))]
COMPRESSED = [f"compressed-{n}" for n in range(12)]
METHODS = [f"method-{n}" for n in range(7)]
CHECKPOINT = "results/grid/{model}/{compression}"
CELL = f"{CHECKPOINT}/{{method}}"
DENSE = "results/grid/{model}/dense"


def prompts(*roles):
    return [f"results/grid/prompts/{role}.jsonl" for role in roles]


TRAIN = prompts("harmful_train", "harmless_train")
VALIDATION = prompts("harmful_validation", "harmless_validation")
EVALUATED = prompts("attack", "over_refusal")
DISJOINT = "results/grid/prompts/disjoint.json"
MADE = f"{CHECKPOINT}/checkpoint/provenance.json"
EDITED = f"{CELL}/checkpoint/provenance.json"
BASE = f"{DENSE}/checkpoint/provenance.json"
DIRECTION, ACTIVATIONS = f"{CHECKPOINT}/direction", f"{CHECKPOINT}/activations"
DENSE_DIRECTION, DENSE_ACTIVATIONS = f"{DENSE}/direction", f"{DENSE}/activations"
GENERATIONS = [
    f"{CELL}/generations/{name}.jsonl" for name in ("attack", "over_refusal")
]
VERDICTS = [f"{CELL}/verdicts/{name}.jsonl" for name in ("attack", "over_refusal")]
ABILITY = [
    f"{CELL}/ability/{name}.json" for name in ("lm_eval", "zero_shot", "perplexity")
]
MEDIATION = [f"{CHECKPOINT}/mediation/{name}.jsonl" for name in ("verdicts", "answers")]
COMPARISON = [f"{CHECKPOINT}/comparison.{suffix}" for suffix in ("json", "csv")]
TRANSFER = f"{CHECKPOINT}/transfer.json"
COMPARED = [DENSE_DIRECTION, DENSE_ACTIVATIONS, DIRECTION, ACTIVATIONS]

# Name: folder of log and benchmark, inputs, outputs.
STAGES = {
    "prompts": ("{role}", [], prompts("{role}")),
    "disjoint": ("study", [*TRAIN, *VALIDATION, *EVALUATED], [DISJOINT]),
    "fetch": ("{model}", ["model/config.json"], [BASE]),
    "compress": ("{model}/{compression}", [BASE, *TRAIN[:1], DISJOINT], [MADE]),
    "activations": ("{model}/{compression}", [MADE, *TRAIN, DISJOINT], [ACTIVATIONS]),
    "direction": (
        "{model}/{compression}",
        [MADE, ACTIVATIONS, *VALIDATION, DISJOINT],
        [DIRECTION],
    ),
    "mediate": (
        "{model}/{compression}",
        [MADE, DIRECTION, DENSE_DIRECTION, *EVALUATED, DISJOINT],
        MEDIATION,
    ),
    "compare": ("{model}/{compression}", COMPARED, COMPARISON),
    "transfer": (
        "{model}/{compression}",
        [*COMPARED, BASE, MADE, *VALIDATION, DISJOINT],
        [TRANSFER],
    ),
    "edit": (
        "{model}/{compression}/{method}",
        [MADE, DENSE_DIRECTION, DIRECTION, *VALIDATION, *TRAIN[:1], DISJOINT],
        [EDITED, f"{CELL}/checkpoint/edit.json"],
    ),
    "generate": (
        "{model}/{compression}/{method}",
        [EDITED, *EVALUATED, DISJOINT],
        GENERATIONS,
    ),
    "judge": ("{model}/{compression}/{method}", GENERATIONS, VERDICTS),
    "ability": ("{model}/{compression}/{method}", [EDITED, "heldout.txt"], ABILITY),
}
WANTED = [*VERDICTS, *ABILITY[1:], DIRECTION, MEDIATION[0], TRANSFER, *COMPARISON]


wildcard_constraints:
    model="model-[0-9]+",
    compression="compressed-[0-9]+|dense",
    method="method-[0-9]+",
    role="[a-z_]+",


rule all:
    default_target: True
    input:
        expand(WANTED, model=MODELS, compression=COMPRESSED, method=METHODS),
        expand("chains/{n}/3", n=range(config.get("chains", 0))),


for name, (folder, inputs, outputs) in STAGES.items():

    rule:
        name:
            name
        input:
            inputs,
        output:
            outputs,
        log:
            f"results/grid/logs/{folder}/{name}.log",
        benchmark:
            f"results/grid/benchmarks/{folder}/{name}.tsv"
        shell:
            "touch {output}"


for step in range(3):

    rule:
        name:
            f"step{step + 1}"
        input:
            [f"chains/{{n}}/{step}"] if step else [],
        output:
            f"chains/{{n}}/{step + 1}",
        shell:
            "touch {output}"


ruleorder: fetch > compress
