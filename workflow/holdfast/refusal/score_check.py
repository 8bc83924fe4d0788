"""Does a refusal score track refusal on this model? Both scores against what the model really answers.

A score that does not is no ground to choose a direction or an edit by: ``direction.json`` says so (``score_valid``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import complete
from holdfast.evaluation.judges import substring_judge
from holdfast.prompts.images import Instruction
from holdfast.prompts.templates import answer_opening
from holdfast.refusal.scores import RefusalScore, learn_openings
from holdfast.statistics import auroc, auroc_interval

ANSWER_TOKENS = 16  # of the answers the score is checked against
ENOUGH = 5  # answers of each kind, refused and not, that a check needs
KINDS = ("first-token", "phrases")


def check_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, Any],
    harmful: Sequence[Instruction],
    harmless: Sequence[Instruction],
) -> tuple[dict[str, RefusalScore], dict[str, list[float]], dict[str, Any]]:
    """Both refusal scores, built from the model's own refusals, their values, and how they fare.

    Values: [harmful, then harmless prompt]. AUROC over harmful and harmless prompts together, and over harmful ones
    alone where some are refused and some not (the harder question); None where only one kind of answer was given.
    """
    texts = [*harmful, *harmless]
    judge = substring_judge("arditi-12")
    done = complete(
        model,
        tokenizer,
        texts,
        settings,
        max_new_tokens=ANSWER_TOKENS,
        suffix=answer_opening(tokenizer, settings),
        progress="refusals to check the score against",
    )
    refused = [judge.refused(c.text, c.finish_reason) for c in done]
    openings = learn_openings([c.tokens for c, r in zip(done, refused, strict=True) if r], tokenizer)
    scores = {kind: RefusalScore(tokenizer, settings, openings, kind) for kind in KINDS}
    count = len(harmful)
    values = {kind: score(model, texts).tolist() for kind, score in scores.items()}
    about = {
        "auroc": {kind: auroc_or_none(v, refused) for kind, v in values.items()},
        "auroc_harmful_only": {kind: auroc_or_none(v[:count], refused[:count]) for kind, v in values.items()},
        "score_check": {kind: checked(v, refused, count) for kind, v in values.items()},
        "refused": {"harmful": sum(refused[:count]), "harmless": sum(refused[count:])},
        "n": {"harmful": count, "harmless": len(harmless)},
        "openings": [tokenizer.decode(o) for o in openings],
        "opening_tokens": openings,
    }
    return scores, values, about


def auroc_or_none(scores: Sequence[float], refused: Sequence[bool]) -> float | None:
    return auroc(scores, refused) if len(set(refused)) == 2 else None


def checked(scores: Sequence[float], refused: Sequence[bool], harmful: int) -> dict[str, Any]:
    """Whether a score tells refused prompts from answered ones better than chance.

    Asked of the harmful prompts alone (the first ``harmful``) where ENOUGH of them are refused and ENOUGH answered, for
    over both kinds of prompt a score can look good by telling the kinds apart; else of all prompts; else not at all.
    Valid: the 95 % interval of its AUROC lies above 1/2.

    Returns ``{valid, checked, on, auroc: {value, low, high, n} or None, reason}``.
    """
    for on, upto in (("harmful", harmful), ("all", len(refused))):
        of = list(refused[:upto])
        if min(sum(of), upto - sum(of)) >= ENOUGH:
            found = auroc_interval(scores[:upto], of)
            valid = found.low > 0.5
            shown = f"AUROC {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] on {on} validation prompts"
            reason = "" if valid else f"it does not track refusal: {shown}"
            return {
                "valid": valid,
                "checked": True,
                "on": on,
                "auroc": found._asdict(),
                "reason": reason,
            }
    few = "refused" if sum(refused) < ENOUGH else "answered"
    number = sum(refused) if few == "refused" else len(refused) - sum(refused)
    reason = f"it cannot be checked: {number} of {len(refused)} validation prompts {few}"
    return {"valid": False, "checked": False, "on": None, "auroc": None, "reason": reason}


def pick_score(kind: str, about: Mapping[str, Any]) -> str:
    """``auto``: the one that tracks refusal; of both or neither, phrases, unless the first token alone tells refused
    harmful prompts from answered ones better.
    """
    if kind != "auto":
        return kind
    valid = [k for k in KINDS if about["score_check"][k]["valid"]]
    if len(valid) == 1:
        return valid[0]
    first, phrases = (about["auroc_harmful_only"][k] for k in KINDS)
    return "first-token" if first is not None and phrases is not None and first > phrases else "phrases"


def load_score(
    about: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]
) -> RefusalScore:
    """The score a direction was chosen by, for later stages to measure with; ``about`` is its ``direction.json``.

    Raises HoldfastError when that names no score.
    """
    if about.get("score") is None or about.get("opening_tokens") is None:
        what = "names no score or no opening_tokens"
        raise HoldfastError(what, "direction.json", "run holdfast direction again")
    return RefusalScore(tokenizer, settings, about["opening_tokens"], about["score"])


def search_score(
    own: Mapping[str, Any],
    dense: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, Any],
) -> tuple[RefusalScore | None, dict[str, Any]]:
    """The score that a search on a compressed model runs on, and ``{of, kind, valid, reason}`` of it.

    The model's own where it tracks refusal. Else the dense model's where that does: a model that has stopped refusing
    shows no refusals to learn from, the dense one shows those to be given back. Else, where a check failed, none: no
    search runs on a score shown not to track refusal. Where neither could be checked, the model's own.

    Args:
        own, dense: the ``direction.json`` of both models.
    """
    # Folders of earlier versions say nothing about their score: it counts as unchecked.
    of, about = "compressed", own
    if not own.get("score_valid") and dense.get("score_valid"):
        of, about = "dense", dense
    valid, reason = bool(about.get("score_valid")), own.get("score_reason", "")
    failed = [a["score_reason"] for a in (own, dense) if a.get("score_checked") and not a["score_valid"]]
    if failed and not valid:
        return None, {"of": None, "kind": None, "valid": False, "reason": failed[0]}
    used = {"of": of, "kind": about["score"], "valid": valid, "reason": reason}
    return load_score(about, tokenizer, settings), used
