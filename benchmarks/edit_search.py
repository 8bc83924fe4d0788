"""The search for an AIRD edit: its time per 20 candidates, in plain evaluations of the validation prompts.

    python benchmarks/edit_search.py MODEL DENSE DIRECTION OWN_DIRECTION [--prompts N] [--stride N]

MODEL is a compressed checkpoint, DENSE its dense original, the two directions their `direction` folders, for example of
results/demo. Candidates: every STRIDE-th layer × 3 variants × 4 α. A plain evaluation is what one candidate would cost
by itself: the refusal score of all harmful prompts and the first answer token of all harmless ones, the better of two
warm ones. Target: 3. The answers that verify the winner and its strengths are a line of their own: their number does
not grow with the candidates'.
"""

import argparse
import time
from pathlib import Path

from holdfast.architectures import decoder_layers
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.methods.edit_candidates import candidates
from holdfast.methods.edit_choice import choose_edit
from holdfast.methods.edit_search import EditSearch, Ranking
from holdfast.methods.validation import Trials, Verifier
from holdfast.model_folders import settings
from holdfast.prompts.sources import read_prompts
from holdfast.refusal.direction import load_direction
from holdfast.refusal.score_check import load_score
from holdfast.refusal.scores import first_answer_token

HARMFUL = {"source": "package:pyrit/datasets/seed_datasets/local/adv_bench.prompt"}
HARMLESS = {"source": "package:holdfast/data/harmless.jsonl"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("model", "dense", "direction", "own_direction"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--prompts", type=int, default=32, help="validation prompts of each kind")
    parser.add_argument("--stride", type=int, default=1, help="every so many layers")
    parser.add_argument("--keep-sparsity", action="store_true")
    given = parser.parse_args()
    model, tokenizer, chosen = load_model(given.model), load_tokenizer(given.model), settings(given.model)
    found, own = load_direction(given.direction), load_direction(given.own_direction)
    score = load_score(own.about, tokenizer, chosen)

    def texts(source: dict[str, str], start: int, count: int) -> list[str]:
        return [r["text"] for r in read_prompts({**source, "rows": f"{start}:{start + count}"})]

    harmful, harmless = texts(HARMFUL, 400, given.prompts), texts(HARMLESS, 400, given.prompts)

    def evaluated() -> float:
        start = time.perf_counter()
        score(model, harmful)
        first_answer_token(model, tokenizer, harmless, chosen)
        return time.perf_counter() - start

    evaluated()  # warms up: the search, which comes after it, is warm too
    plain = min(evaluated() for _ in range(2))
    start = time.perf_counter()
    layers = list(range(0, len(decoder_layers(model)), given.stride))
    search = {"variants": ["amplify", "centred", "null-space"], "layers": layers, "alphas": [1, 2, 4, 8]}
    plan = {key: "search" for key in ("variant", "layer", "alpha")} | {"search": search}
    tried = candidates(
        model,
        tokenizer,
        chosen,
        plan | {"matrices": ["o_proj", "down_proj"], "keep_sparsity": given.keep_sparsity},
        [[layer] for layer in layers],
        direction=found.unit,
        own_direction=own.unit,
        folder=given.model,
        dense=given.dense,
        harmful_train=texts(HARMFUL, 300, 64),
        harmless_train=texts(HARMLESS, 300, 64),
    )
    made = time.perf_counter() - start
    searched = EditSearch(model, score, harmful, harmless, layers, given.model, max_kl=0.1)
    ranking = Ranking(searched, tried)
    leaders = ranking.leaders()
    seconds = time.perf_counter() - start
    print(f"plain evaluation of {given.prompts} + {given.prompts} prompts: {plain:.1f} s")
    print(f"search over {len(tried)} candidates: {seconds:.1f} s, {made:.1f} s of it to compute them")
    print(f"per 20 candidates: {20 * seconds / len(tried) / plain:.2f} plain evaluations")
    trace = ranking.trace()
    seen = sum(row["prompts"] for row in trace[1:]) / len(tried)
    print(f"prompts of each kind a candidate saw: {seen:.1f} of {given.prompts}")
    start = time.perf_counter()
    trials = Trials(Verifier(model, tokenizer, chosen, harmful, harmless, "arditi-12", 0.05))
    winner, _ = choose_edit(ranking, trials, given.model)
    verifying = time.perf_counter() - start
    passes = len(trials.tries) + 1
    print(
        f"answers that verify, {passes} times all prompts: {verifying:.1f} s, {verifying / plain:.1f} plain evaluations"
    )
    print(f"made: {winner and (winner.variant, winner.layers, winner.alpha)}")
    for number in leaders:
        print(f"leader: {ranking.row(number)}")
    print(f"unedited: {trace[0]['refusal_score']:.2f}")


if __name__ == "__main__":
    main()
