"""How much a stage has to do, counted from the study alone: tokens through the model, answers, candidates.

What a job needs and what a study costs both follow from it. Lengths that only data or a tokenizer could tell are
taken as constants here; what they are off by is in the measured rates (``holdfast.cluster.rates``) and told beside
every prediction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from holdfast.cluster.sizes import Size
from holdfast.config import DENSE, Study
from holdfast.config.compressions import calibrated
from holdfast.pairs.references import COUNTS as PAIRS

PROMPT_TOKENS = 48  # of a chat prompt with its template, without images
PROMPTS = 250  # of a set whose size the config does not say, as XSTest's safe prompts are
VISUAL = 1000  # questions about images, likewise
POSITIONS = 6  # post-instruction tokens of a chat template
SHALLOW = 0.8  # share of the layers that are candidates (the last 20 % are dropped)
ANSWER_TOKENS = 16  # of the answers that a choice is verified on (refusal/score_check.py)
JUDGED_TOKENS = 400  # of a judge's own prompt, and its output below
JUDGEMENT_TOKENS = 20
TEXT_TOKENS = 340_000  # of a whole test set of WikiText-2 (Llama 2's tokenizer)
# Per candidate of a sweep and prompt, per candidate of an edit search and prompt, per prompt and direction tried:
# tokens through the model, as counted on the embedded model (benchmarks/RESULTS.md, the sweep and the edit search).
SWEEP_TOKENS, SEARCH_TOKENS, FULL_TOKENS = 8, 8, PROMPT_TOKENS
TEXT = ("text",)  # the modality without images
VERIFIED = 5  # edits or strengths whose answers are verified
# Questions, choices and tokens of a question with a choice, of the six tasks of study L and ours, from their data sets.
TASKS = {
    "holdfast_choice": (120, 4, 20),
    "boolq": (3270, 2, 140),
    "rte": (277, 2, 90),
    "hellaswag": (10042, 4, 100),
    "winogrande": (1267, 2, 30),
    "arc_challenge": (1172, 4, 40),
    "arc_easy": (2376, 4, 40),
    "openbookqa": (500, 4, 25),
    "piqa": (1838, 2, 50),
}
OTHER_TASK = (2000, 4, 60)


@dataclass(frozen=True)
class Work:
    """What one job does with its model.

    Attributes:
        tokens: that go through the model, those of answers included; a training token counts three times (forward
            once, backward twice).
        answers, new_tokens: how many answers are generated, and the longest of them: after a batch's prompts, each
            of its answers' tokens is a pass of its own.
        context: longest sequence, tokens.
        loads: models loaded one after the other.
        method: of a compression, what weights are changed by; of answers, vllm where that gives them; of a fetched
            checkpoint, whether it is made or copied.
        training: gradients are kept.
    """

    stage: str
    tokens: float = 0
    answers: float = 0
    new_tokens: int = 0
    context: int = PROMPT_TOKENS
    loads: int = 1
    method: str = ""
    training: bool = False


Names = dict[str, str]
Counter = Callable[[Study, Names, Size], Work]


def prompts(study: Study, *roles: str) -> int:
    """How many prompts the sets have, as far as the config says."""
    return sum(_of_set(getattr(study.prompts, role)) for role in roles)


def _of_set(section: Any) -> int:
    number = section.limit or PROMPTS
    if section.rows:
        start, stop = (int(part) if part else None for part in section.rows.split(":"))
        if stop is not None and (start or 0) >= 0 and stop > 0:
            number = min(number if section.limit else stop, stop - (start or 0))
    return number


def _asked(
    stage: str, number: float, new_tokens: int, question: int = PROMPT_TOKENS, method: str = ""
) -> Work:
    """Answers to so many prompts."""
    tokens = number * (question + new_tokens)
    return Work(stage, tokens, number, new_tokens, question + new_tokens, method=method)


def _by_backend(
    study: Study, stage: str, number: float, new_tokens: int, question: int = PROMPT_TOKENS
) -> Work:
    """The same by the study's backend, where that is the one that answers."""
    method = "vllm" if study.evaluate.generate.backend == "vllm" else ""
    return _asked(stage, number, new_tokens, question, method)


def _shown(work: Work, images: float, size: Size) -> Work:
    """The same work with so many images shown, one in a prompt."""
    context = work.context + size.image_tokens if images else work.context
    return replace(work, tokens=work.tokens + images * size.image_tokens, context=context)


def _train(study: Study) -> int:
    return prompts(study, "harmful_train", "harmless_train")


def _validation(study: Study) -> int:
    return prompts(study, "harmful_validation", "harmless_validation")


def activations(study: Study, names: Names, size: Size) -> Work:
    return Work("activations", _train(study) * PROMPT_TOKENS)


def direction(study: Study, names: Names, size: Size) -> Work:
    chosen = study.direction
    positions = POSITIONS if chosen.positions == "all" else len(chosen.positions)
    layers = size.layers if chosen.layers == "all" else len(chosen.layers)
    candidates = positions * max(1, round(SHALLOW * layers))
    each = 3 * FULL_TOKENS if chosen.full_table else SWEEP_TOKENS
    asked = _validation(study)
    tokens = asked * (5 * PROMPT_TOKENS + ANSWER_TOKENS + candidates * each)
    tokens += 2 * _train(study) * PROMPT_TOKENS * chosen.filter_train
    return Work("direction", tokens, asked, ANSWER_TOKENS)


def transfer(study: Study, names: Names, size: Size) -> Work:
    tried = 2 * (
        2 + 3 * study.evaluate.transfer.nulls
    )  # both ways, each own and other's direction and the nulls
    return Work("transfer", tried * _validation(study) * FULL_TOKENS, loads=2)


def mediate(study: Study, names: Names, size: Size) -> Work:
    section = study.evaluate.mediation
    conditions = 4 + 2 * section.random_seeds
    if names["compression"] != DENSE:
        conditions += 2 + section.random_seeds
    return _asked("mediate", conditions * section.prompts, section.max_new_tokens)


def edit(study: Study, names: Names, size: Size) -> Work:
    recipe = study.recipe("edit", method=names["method"])
    search = recipe.get("search")
    tokens = _train(study) / 2 * PROMPT_TOKENS  # the mean inputs, on harmless training prompts
    if not search:
        return Work("edit", tokens, method="edit-fixed")
    layers = search.get("layers", [0])
    tried = prod(
        size.layers if key == "layers" and layers == "all" else len(search[key])
        for key in ("variants", "layers", "alphas")
        if key in search
    )
    asked = _validation(study)
    tokens += asked * (2 * PROMPT_TOKENS + tried * SEARCH_TOKENS)
    tokens += VERIFIED * asked * (PROMPT_TOKENS + ANSWER_TOKENS)
    return Work("edit", tokens, VERIFIED * asked, ANSWER_TOKENS)


def steer(study: Study, names: Names, size: Size) -> Work:
    search = study.recipe("steer", method=names["method"]).get("search")
    tried = len(search["steering"]) if search else 0
    asked = tried * _validation(study)
    return Work("steer", asked * (2 * PROMPT_TOKENS + ANSWER_TOKENS), asked, ANSWER_TOKENS)


def instruct(study: Study, names: Names, size: Size) -> Work:
    return Work("instruct", loads=0)


def compress(study: Study, names: Names, size: Size) -> Work:
    return _compressed(study.recipe("compress", compression=names["compression"]))


def _compressed(recipe: dict[str, Any]) -> Work:
    if "source" in recipe:
        return Work("compress", loads=0, method="published")
    method = recipe.get("prune") or recipe["quantize"]
    if not calibrated(recipe):
        return Work("compress", method=method)
    # Each layer sees the text once before it is changed and once after.
    return Work("compress", 2 * recipe["samples"] * recipe["tokens"], context=recipe["tokens"], method=method)


def recalibrate(study: Study, names: Names, size: Size) -> Work:
    recipe = study.recipe("recalibrate", compression=names["compression"], method=names["method"])
    return _compressed(recipe["compress"])


def tune(study: Study, names: Names, size: Size) -> Work:
    recipe = study.recipe("tune", method=names["method"])
    length = PROMPT_TOKENS + study.evaluate.generate.max_new_tokens
    tokens = 3 * recipe["steps"] * recipe["batch_size"] * length
    return Work("tune", tokens, context=length, training=True)


def training_answers(study: Study, names: Names, size: Size) -> Work:
    return _by_backend(study, "generate", _train(study), study.evaluate.generate.max_new_tokens)


def generate(study: Study, names: Names, size: Size) -> Work:
    number = prompts(study, "attack", "over_refusal")
    return _by_backend(study, "generate", number, study.evaluate.generate.max_new_tokens)


def attack(study: Study, names: Names, size: Size) -> Work:
    setting = study.evaluate.attacks[names["attack"]]
    number = min(setting.prompts or prompts(study, "attack"), prompts(study, "attack"))
    question = PROMPT_TOKENS + len(setting.system_prompt or "") // 4
    new = study.evaluate.generate.max_new_tokens
    return _by_backend(study, "generate", number * (setting.samples or 1), new, question)


def borderline(study: Study, names: Names, size: Size) -> Work:
    return _by_backend(
        study, "generate", prompts(study, "borderline"), study.evaluate.generate.max_new_tokens
    )


def image_use(study: Study, names: Names, size: Size) -> Work:
    """Four passes over every half with an image."""
    passes = 4 * _halves(study, but=TEXT)
    return _shown(Work("direction", passes * PROMPT_TOKENS), passes, size)


def modalities(study: Study, names: Names, size: Size) -> Work:
    """A pass over what directions are learnt on, and over pairs with each direction ablated and added."""
    section = study.modalities
    if section is None:
        return Work("transfer")
    learnt = 2 * min(section.limit or PROMPTS, PROMPTS)  # of a modality
    tried = 3 + 2 * section.nulls  # nothing, the refusal direction, the modality's own, and the nulls
    passes = len(PAIRS) * learnt + tried * _halves(study, most=section.pairs)
    images = (len(PAIRS) - len(TEXT)) * learnt + tried * _halves(study, but=TEXT, most=section.pairs)
    return _shown(Work("transfer", passes * FULL_TOKENS), images, size)


def answer_pairs(study: Study, names: Names, size: Size) -> Work:
    work = _by_backend(study, "generate", _halves(study), study.evaluate.generate.max_new_tokens)
    return _shown(work, _halves(study, but=TEXT), size)


def answer_visual(study: Study, names: Names, size: Size) -> Work:
    section = study.evaluate.visual
    number = (section.limit if section else None) or VISUAL
    work = _by_backend(study, "generate", number, study.evaluate.generate.max_new_tokens)
    return _shown(work, number, size)


def _halves(study: Study, but: Sequence[str] = (), most: int | None = None) -> int:
    """Halves of the study's pairs, ``most`` pairs of a modality, without those of some modalities."""
    section = study.pairs
    if section is None:
        return 0
    limits = [limit for limit in (section.limit, most) if limit is not None]
    return 2 * sum(min(PAIRS[m], *limits) if limits else PAIRS[m] for m in section.modality if m not in but)


def ability(study: Study, names: Names, size: Size) -> Work:
    tokens, section = 0.0, study.evaluate
    longest = PROMPT_TOKENS
    for name in section.zero_shot.tasks:
        questions, choices, length = TASKS.get(name, OTHER_TASK)
        tokens += min(section.zero_shot.limit or questions, questions) * choices * length
        longest = max(longest, length)
    text = section.perplexity
    window = size.longest or 2048 if text.window == "model" else text.window
    tokens += text.windows * window if text.windows else TEXT_TOKENS
    return Work("ability", tokens, context=max(longest, window))


def judge_by_model(study: Study, names: Names, size: Size) -> Work:
    new = study.evaluate.generate.max_new_tokens
    both = prompts(study, "attack", "over_refusal")
    number = attack(study, names, size).answers if "attack" in names else both
    question = PROMPT_TOKENS + new + JUDGED_TOKENS
    return _by_backend(study, "judge_by_model", number, JUDGEMENT_TOKENS, question)


def fetch(study: Study, names: Names, size: Size) -> Work:
    """Files as they come, a shard at a time; or made here, of the embedded package or an adapter, in float32."""
    if "judge" in names:
        return Work("fetch", loads=0, method="fetched")
    model = study.models[names["model"]]
    made = model.adapter is not None or model.source.startswith("package:")
    return Work("fetch", loads=int(made), method="made" if made else "fetched")


COUNTERS: dict[str, Counter] = {
    "fetch": fetch,
    "fetch_judge": fetch,
    "compress": compress,
    "recalibrate": recalibrate,
    "activations": activations,
    "direction": direction,
    "transfer": transfer,
    "mediate": mediate,
    "edit": edit,
    "instruct": instruct,
    "steer": steer,
    "tune": tune,
    "training_answers": training_answers,
    "generate": generate,
    "attack": attack,
    "borderline": borderline,
    "answer_pairs": answer_pairs,
    "answer_visual": answer_visual,
    "image_use": image_use,
    "modalities": modalities,
    "ability": ability,
    "judge_by_model": judge_by_model,
    "judge_attack_by_model": judge_by_model,
}


def counted_as(rule: str) -> str | None:
    """The rule that a rule is counted as: itself, or the one it is named after, as compress_by_gptqmodel is; None where
    it runs no model."""
    known = [name for name in COUNTERS if rule == name or rule.startswith(f"{name}_by_")]
    return max(known, key=len, default=None)


def counter(rule: str) -> Counter | None:
    """How the work of a rule is counted."""
    name = counted_as(rule)
    return COUNTERS[name] if name else None
