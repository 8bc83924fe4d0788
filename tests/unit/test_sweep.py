"""The fast sweep: cheaper passes give the same numbers, and the choice is the exhaustive one's."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from families import built
from holdfast.architectures import decoder_layers
from holdfast.batching import halving
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.errors import HoldfastError
from holdfast.refusal.activations import block_inputs
from holdfast.refusal.candidate_scores import Candidate, Sweep
from holdfast.refusal.interventions import added
from holdfast.refusal.passes import BlockInputs, next_token_logits, pack_size
from holdfast.refusal.prompt_trees import Prompts
from holdfast.refusal.scores import RefusalScore
from holdfast.refusal.sweep import NOT_NEEDED, run_sweep
from planted import SETTINGS, prompts
from tiny import tiny_tokenizer

OPENINGS = [[5, 6, 7], [5, 6, 9], [5, 8], [11]]
FAMILIES = ["Llama", "Qwen2", "Qwen3", "Gemma2", "Gemma3Text", "Mistral", "Mixtral", "Qwen3Moe", "Phi3"]


@pytest.fixture(scope="module")
def planted(planted_dir: tuple[Path, torch.Tensor]) -> tuple[Any, Any, torch.Tensor]:
    """The planted model, its tokenizer, and its train activations [kind, prompt, position, layer, d_model]."""
    model, tokenizer = load_model(planted_dir[0]), load_tokenizer(planted_dir[0])
    kinds = [block_inputs(model, tokenizer, prompts(k, 16), SETTINGS) for k in ("harmful", "harmless")]
    return model, tokenizer, torch.stack(kinds)


def sweep_of(planted: tuple[Any, Any, torch.Tensor], kind: str, *, affine: bool) -> Sweep:
    model, tokenizer, activations = planted
    means = activations.double().mean(1)
    candidates = [
        Candidate(p, layer, (means[0] - means[1])[p, layer].float(), means[1][p].float() if affine else None)
        for p in range(-activations.shape[2], 0)
        for layer in range(activations.shape[3])
    ]
    refusing = tokenizer("I", add_special_tokens=False)["input_ids"]
    score = RefusalScore(tokenizer, SETTINGS, [refusing, *OPENINGS], kind)
    return Sweep(model, score, candidates, prompts("harmful", 12, 100), prompts("harmless", 12, 100))


@pytest.mark.parametrize("kind", ["first-token", "phrases"])
@pytest.mark.parametrize("affine", [False, True])
def test_the_choice_is_the_exhaustive_one(
    planted: tuple[Any, Any, torch.Tensor], kind: str, affine: bool
) -> None:
    layers = planted[2].shape[3]
    exhaustive = sweep_of(planted, kind, affine=affine)
    whole, _, _ = run_sweep(exhaustive, layers, 50.0, -50.0, full=True)
    # A template token's embedding is the same after every instruction: no difference, no direction.
    assert (whole["bypass"].isna() == (whole["layer"] == 0)).all()
    kls, induced = (whole.loc[whole["layer"] < 4, name] for name in ("kl", "induce"))
    # Between candidates, so that rounding decides nothing.
    bounds = [
        (kls.quantile(q, "midpoint"), induced.quantile(p, "midpoint"))
        for q in (0.2, 0.5, 0.97)
        for p in (0.03, 0.5, 0.9)
    ]
    # None passes: some induce refusal, few do, none does; what is least is also well under what is asked.
    failing = [(kls.min() / 2, bound) for bound in (0.0, induced.quantile(0.5, "midpoint"), 15.0)]
    chosen = set()
    for max_kl, min_induce in [*bounds, *failing, (kls.max(), induced.max() + 1)]:
        expected, number, usable = run_sweep(exhaustive, layers, max_kl, min_induce, full=True)
        fast = sweep_of(planted, kind, affine=affine)
        table, found, also_usable = run_sweep(fast, layers, max_kl, min_induce)
        assert (found, also_usable) == (number, usable)
        chosen.add(found)
        for name in ("bypass", "induce", "kl"):  # what was measured is what the exhaustive sweep measures
            both = pd.concat([table[name], expected[name]], axis=1).dropna()
            assert len(both) or (name == "induce" and min_induce > induced.max())
            assert both.iloc[:, 0].to_numpy() == pytest.approx(both.iloc[:, 1].to_numpy(), abs=1e-4)
        for n in whole.index[whole["layer"] > 0]:  # what was taken for a bound is one
            assert fast.kl.least(n) <= whole.loc[n, "kl"] + 1e-4
            assert fast.induce.most(n) >= whole.loc[n, "induce"] - 1e-4
        # A reason given is true: what it names is over its bound, and the exhaustive sweep drops it as well.
        told = table["dropped"].ne(NOT_NEEDED) & table["dropped"].ne("")
        assert expected.loc[told, "dropped"].ne("").all()
        for name, kept in (("kl", expected["kl"] <= max_kl), ("induce", expected["induce"] >= min_induce)):
            assert not kept[table["dropped"].str.startswith(name)].any()
    assert len(chosen) > 1  # the bounds matter here


def test_a_candidate_is_left_once_it_cannot_induce_refusal(planted: tuple[Any, Any, torch.Tensor]) -> None:
    sweep = sweep_of(planted, "first-token", affine=False)
    _, _, usable = run_sweep(sweep, 6, 50.0, 24.0)
    asked = [sweep.induce.done[n] for n, c in enumerate(sweep.candidates) if 0 < c.layer < 4]
    assert not usable
    assert max(asked) < 12


def test_a_pack_that_does_not_fit_goes_prompt_by_prompt(
    planted: tuple[Any, Any, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, small = (sweep_of(planted, "first-token", affine=False) for _ in range(2))
    of = small.bypass.of

    def little_memory(numbers: Sequence[int], packs: Sequence[tuple[int, ...]]) -> torch.Tensor:
        if sum(map(len, packs)) > 1:
            raise torch.cuda.OutOfMemoryError
        return of(numbers, packs)

    monkeypatch.setattr(small.bypass, "of", little_memory)
    for each in (sweep, small):
        each.bypass.advance([7, 9])
    assert small.bypass.mean(7) == pytest.approx(sweep.bypass.mean(7), abs=1e-4)
    assert small.bypass.mean(9) == pytest.approx(sweep.bypass.mean(9), abs=1e-4)
    assert sweep.bypass.mean(7) != pytest.approx(sweep.bypass.mean(9), abs=1e-2)


def test_what_cannot_be_chosen_is_not_measured(planted: tuple[Any, Any, torch.Tensor]) -> None:
    sweep = sweep_of(planted, "first-token", affine=False)
    table, number, usable = run_sweep(sweep, 6, 1e-3, -50.0)
    over = table[table["dropped"].str.startswith("kl >")]
    assert (over["kl_prompts"] < 12).any()
    assert over["bypass"].isna().any()
    assert table.loc[table["layer"] >= 4, ["bypass", "induce", "kl"]].isna().all(axis=None)
    assert usable
    assert table.loc[number, ["bypass", "induce", "kl"]].notna().all()


def test_nan_is_never_chosen(planted: tuple[Any, Any, torch.Tensor]) -> None:
    good = sweep_of(planted, "first-token", affine=False)
    _, best, _ = run_sweep(good, 6, 50.0, -50.0)
    bad = sweep_of(planted, "first-token", affine=False)
    bad.candidates[best].difference.fill_(math.nan)
    _, found, usable = run_sweep(bad, 6, 50.0, -50.0)
    assert usable
    assert found != best
    for candidate in bad.candidates:
        candidate.difference.fill_(math.nan)
    again = Sweep(bad.model, bad.score, bad.candidates, prompts("harmful", 2), prompts("harmless", 2))
    with pytest.raises(HoldfastError, match="no candidate has a KL divergence"):
        run_sweep(again, 6, 50.0, -50.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_pass_is_the_whole_pass(family: str) -> None:
    tokenizer = tiny_tokenizer()
    model = built(family, vocab_size=len(tokenizer), num_key_value_heads=2)
    score = RefusalScore(tokenizer, SETTINGS, OPENINGS, "phrases")
    asked = score.prompts([*prompts("harmful", 3), "hello"])
    last = len(decoder_layers(model)) - 1
    kept = BlockInputs(model, asked, [0, last], 3)
    vector = torch.randn(
        model.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0)
    )
    rows = [3, 0, 2]
    for layer in (0, last):
        with added(model, vector.to(model.dtype), layer):
            whole = next_token_logits(model, asked, rows)
        with kept.resumed(model, layer, rows, vector):
            found = next_token_logits(model, asked, rows)
        assert torch.allclose(found, whole, atol=1e-4)
        assert not torch.allclose(found, next_token_logits(model, asked, rows), atol=1e-3)
    assert all("forward" not in block.__dict__ for block in decoder_layers(model))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("openings", [OPENINGS, [[5]]])
def test_prompts_in_one_row_are_read_as_one_by_one(family: str, openings: list[list[int]]) -> None:
    tokenizer = tiny_tokenizer()
    model = built(family, vocab_size=len(tokenizer), num_key_value_heads=2)
    score = RefusalScore(tokenizer, SETTINGS, openings, "phrases")
    # The third is how the first begins; the last is the second again.
    asked = score.prompts(["the river ran past the mill", "the river", "the river ran", "snow", "the river"])
    assert pack_size(model, [asked], 32) == 8
    packs: list[tuple[int, ...]] = [(0, 2, 1), (3, 4)]
    assert len(asked.layout(packs[0])) < sum(asked.lengths()[row] for row in packs[0])
    rows = [row for pack in packs for row in pack]
    assert torch.allclose(
        next_token_logits(model, asked, packs), next_token_logits(model, asked, rows), atol=1e-4
    )
    last = len(decoder_layers(model)) - 1
    kept, alone = (BlockInputs(model, asked, [0, last], 4, pack) for pack in (3, 1))
    assert torch.allclose(kept.first, alone.first, atol=1e-4)
    hidden = model.config.get_text_config().hidden_size
    vectors = torch.randn(2, hidden, generator=torch.Generator().manual_seed(0))
    for layer in (0, last):
        with kept.resumed(model, layer, packs, vectors):
            found = next_token_logits(model, asked, packs)
        each = []
        for pack, vector in zip(packs, vectors, strict=True):
            with added(model, vector.to(model.dtype), layer):
                each.append(next_token_logits(model, asked, list(pack)))
        assert torch.allclose(found, torch.cat(each), atol=1e-4)


def test_a_model_that_minds_no_mask_reads_prompts_one_by_one() -> None:
    tokenizer = tiny_tokenizer()
    model = built("Llama", vocab_size=len(tokenizer), num_key_value_heads=2)
    asked = Prompts(tokenizer, SETTINGS, prompts("harmful", 4))
    assert pack_size(model, [asked], 4) == 4
    embed = model.get_input_embeddings()
    # As a recurrent block does: every token takes in those that stand before it in its row.
    with torch.no_grad():
        embed.weight.mul_(10)
    handle = embed.register_forward_hook(lambda _module, _args, output: output.cumsum(1))
    assert pack_size(model, [asked], 4) == 1
    handle.remove()
    windowed = built("Mistral", vocab_size=len(tokenizer), num_key_value_heads=2, sliding_window=8)
    assert pack_size(windowed, [asked], 4) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_openings_in_one_tree_score_as_one_by_one(family: str) -> None:
    tokenizer = tiny_tokenizer()
    model = built(family, vocab_size=len(tokenizer), num_key_value_heads=2)
    texts = [*prompts("harmful", 2), "hello"]
    found = RefusalScore(tokenizer, SETTINGS, OPENINGS, "phrases")(model, texts)
    plain = RefusalScore(tokenizer, SETTINGS, [[5]], "first-token")
    for text, value in zip(texts, found, strict=True):
        (ids,) = plain.prompts([text]).ids
        total = 0.0
        for opening in OPENINGS:
            with torch.inference_mode():
                logits = model(torch.tensor([ids + opening])).logits[0].float().log_softmax(-1)
            total += math.exp(sum(logits[len(ids) - 1 + i, token] for i, token in enumerate(opening)))
        assert value == pytest.approx(math.log(total / (1 - total)), abs=1e-3)


def test_a_batch_is_halved_when_memory_runs_out() -> None:
    tried: list[int] = []

    def run(items: Sequence[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > 3:
            raise torch.cuda.OutOfMemoryError
        return [2 * i for i in items]

    found = halving(run, range(10), 8)
    assert [i for part in found for i in part] == [2 * i for i in range(10)]
    assert tried == [8, 4, 2, 2, 2, 2, 2]

    def never(items: Sequence[int]) -> None:
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(HoldfastError, match="one prompt does not fit"):
        halving(never, [1, 2])


def test_a_window_shorter_than_the_prompt_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    model = built("Mistral", vocab_size=len(tokenizer), num_key_value_heads=2, sliding_window=8)
    with pytest.raises(
        HoldfastError, match=r"exceed its sliding window of 8; use direction\.score: first-token"
    ):
        RefusalScore(tokenizer, SETTINGS, OPENINGS, "phrases")(model, ["hello there"])
    assert RefusalScore(tokenizer, SETTINGS, OPENINGS, "first-token")(model, ["hello there"]).shape == (1,)
