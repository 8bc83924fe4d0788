"""Answers to prompts, greedy or drawn: batched, left-padded, resumed at the next batch after a kill."""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from holdfast.batching import fitting_batch_size, halving
from holdfast.errors import HoldfastError
from holdfast.evaluation.sampling import Sampling
from holdfast.evaluation.thoughts import apart, decoded
from holdfast.files import write_jsonl
from holdfast.prompts.sources import read_records, suffix_text, verified_path
from holdfast.prompts.templates import (
    Thought,
    answer_opening,
    by_length,
    encode,
    render,
    require_system_prompt,
    thought_delimiters,
)
from holdfast.provenance import Recorder, input_checksum


@dataclass(frozen=True)
class Completion:
    """One answer: its text, its token ids, ``stop`` (it ended by itself) or ``length`` (cut), and the thought before
    it. ``tokens`` are those of the thought and the answer.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    thought: str | None = None


class Backend(Protocol):
    """What answers prompts. ``transformers`` here; vLLM enters by the same door."""

    def batches(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Indices into ``texts``, in the batches they are answered in: the same for the same texts."""

    def answer(
        self, texts: Sequence[str], max_new_tokens: int, seeds: Sequence[int] = ()
    ) -> list[Completion]:
        """Completions of one batch: drawn, each with its own of ``seeds``, or greedy without any."""


class Transformers:
    """``generate`` of transformers on a loaded model.

    ``suffix`` stands after every prompt and is no part of the answer; ``sampling`` says how answers are drawn.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Mapping[str, Any],
        batch_size: int | str = "auto",
        suffix: str = "",
        sampling: Sampling | None = None,
    ) -> None:
        self.model: Any = model  # `generate` comes from a mixin that type checkers do not follow
        self.tokenizer, self.settings = tokenizer, settings
        self.batch_size, self.suffix, self.sampling = batch_size, suffix, sampling

    @cached_property
    def thought(self) -> Thought | None:
        """The marks of thoughts. A suffix stands where the answer begins: after it no thought is under way."""
        found = thought_delimiters(self.tokenizer, self.settings)
        return replace(found, begun=False, left_out="") if found and self.suffix else found

    def shown(self, texts: Sequence[str]) -> list[str]:
        """What the model reads for each text."""
        return render(self.tokenizer, texts, self.settings)

    def encoded(self, texts: Sequence[str]) -> BatchEncoding:
        """The same as token ids, left-padded."""
        return encode(self.tokenizer, texts, self.settings, self.suffix)

    def batches(self, texts: Sequence[str]) -> Iterator[list[int]]:
        lengths = [len(i) for i in self.tokenizer(self.shown(texts))["input_ids"]]
        size = (
            fitting_batch_size(self.model, max(lengths))
            if self.batch_size == "auto"
            else int(self.batch_size)
        )
        return by_length(lengths, size)

    def answer(
        self, texts: Sequence[str], max_new_tokens: int, seeds: Sequence[int] = ()
    ) -> list[Completion]:
        batch = self.encoded(texts).to(self.model.device)
        with torch.inference_mode():
            output = self.model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                logits_processor=self.sampling.processors(seeds) if self.sampling and seeds else None,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        ends = end_tokens(self.model, self.tokenizer)
        rows = output[:, batch["input_ids"].shape[1] :].tolist()
        return [cut(row, ends, self.tokenizer, self.thought) for row in rows]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    named = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}


def cut(
    row: Sequence[int], ends: set[int], tokenizer: PreTrainedTokenizerBase, thought: Thought | None = None
) -> Completion:
    """A generated row up to and without its first end token, its thought apart."""
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    tokens, reason = list(row[:stop]), "length" if stop is None else "stop"
    if thought is None:
        return Completion(str(tokenizer.decode(tokens, skip_special_tokens=True)), tokens, reason)
    inside, answer = apart(decoded(tokens, tokenizer, thought), thought)
    return Completion(answer, tokens, reason, inside)


def answered(
    backend: Backend, texts: Sequence[str], max_new_tokens: int, seeds: Sequence[int] = ()
) -> list[Completion]:
    """Answers of one batch, in halves when memory runs out."""

    def run(some: Sequence[int]) -> list[Completion]:
        return backend.answer([texts[i] for i in some], max_new_tokens, [seeds[i] for i in some if seeds])

    return list(chain.from_iterable(halving(run, range(len(texts)))))


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    settings: Mapping[str, Any],
    *,
    max_new_tokens: int,
    batch_size: int | str = "auto",
    suffix: str = "",
    progress: str = "answers",
) -> list[Completion]:
    """Greedy answers in the order of ``texts``; ``suffix`` as in :class:`Transformers`."""
    backend = Transformers(model, tokenizer, settings, batch_size, suffix)
    done: dict[int, Completion] = {}
    for indices in tqdm(list(backend.batches(texts)), desc=progress, unit="batch", mininterval=2):
        done.update(zip(indices, answered(backend, [texts[i] for i in indices], max_new_tokens), strict=True))
    return [done[i] for i in range(len(texts))]


def generate_file(
    backend: Backend, prompts: Sequence[Mapping[str, Any]], out: Path, max_new_tokens: int, asked: str
) -> None:
    """Answer ``prompts`` into ``out`` (JSONL, in prompt order); those with a seed, ``draw``, get a drawn answer.

    Each batch is appended to ``out.ASKED.partial`` when it is made; a killed run goes on at the first batch that
    is not whole there. With a given batch size the batches are the same every time, so a resumed file equals an
    uninterrupted one. The partial file stays until the whole stage is done: Snakemake removes the outputs of a
    killed stage, finished or not. ``asked`` stands for everything but the prompts that the answers depend on
    (model, settings, recipe), so that a run is never resumed with answers to something else.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.{asked}.partial")
    texts = [p["text"] for p in prompts]
    with partial.open("a", encoding="utf-8") as stream:
        # A stage whose Snakemake was killed may still be running: wait for it, then go on from what it wrote.
        fcntl.flock(stream, fcntl.LOCK_EX)
        wanted = {(str(p["id"]), p["text"]) for p in prompts}
        done = {r["id"]: r for r in whole_records(partial) if (r.get("id"), r.get("prompt")) in wanted}
        if partial.stat().st_size:
            stream.write("\n")  # ends a line that a kill cut short; empty lines are skipped
        for indices in tqdm(list(backend.batches(texts)), desc=out.stem, unit="batch", mininterval=2):
            if all(str(prompts[i]["id"]) in done for i in indices):
                continue
            seeds = [prompts[i]["draw"] for i in indices if "draw" in prompts[i]]
            answers = answered(backend, [texts[i] for i in indices], max_new_tokens, seeds)
            records = [generation_record(prompts[i], a) for i, a in zip(indices, answers, strict=True)]
            stream.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
            stream.flush()
            done.update({r["id"]: r for r in records})
        write_jsonl(out, [done[str(p["id"])] for p in prompts])


def whole_records(partial: Path) -> list[dict[str, Any]]:
    """Records of a partial file, leaving out a last line that a kill cut short."""
    if not partial.is_file():
        return []
    records = []
    for line in partial.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [r for r in records if isinstance(r, dict)]


def generation_record(prompt: Mapping[str, Any], answer: Completion) -> dict[str, Any]:
    return {
        "id": str(prompt["id"]),
        "prompt_id": str(prompt.get("prompt_id", prompt["id"])),
        **({"sample": prompt["sample"]} if "sample" in prompt else {}),
        "prompt": prompt["text"],
        **({"request": prompt["request"]} if "request" in prompt else {}),
        **({} if answer.thought is None else {"thought": answer.thought}),
        "completion": answer.text,
        "tokens": answer.tokens,
        "finish_reason": answer.finish_reason,
    }


def generate(model_dir: Path, out: Path, prompts: Mapping[str, Path], recipe: Mapping[str, Any]) -> None:
    """Write ``out/NAME.jsonl`` for every prompt set, one model load for all of them.

    ``recipe``: ``max_new_tokens``, ``batch_size`` (number or ``auto``), ``backend`` (``transformers``); of an attack
    setting also ``system_prompt`` ("" for none), ``prefix`` (opens the answer), ``suffix`` (``file:PATH``, its text
    follows every prompt) with ``sha256``, ``temperature`` with ``top_p``, ``samples`` and ``seed``, ``prompts`` (the
    first so many of each set).
    """
    from holdfast.checkpoints import load_model, load_tokenizer
    from holdfast.model_folders import settings

    recorder = Recorder("generate", dict(recipe))
    if recipe.get("backend", "transformers") != "transformers":
        raise HoldfastError(
            f"unknown backend {recipe['backend']!r}", "evaluate.generate.backend", "use transformers"
        )
    drawn = {k: recipe[k] for k in ("temperature", "top_p", "samples", "seed") if k in recipe}
    sampling = Sampling(**drawn) if drawn else None
    suffix = verified_path(recipe["suffix"], recipe.get("sha256")) if "suffix" in recipe else None
    sets = {}
    for name, path in prompts.items():
        asked_for = with_suffix(read_records(path)[: recipe.get("prompts")], suffix)
        sets[name] = [t for p in asked_for for t in sampling.tries(p)] if sampling else asked_for
    model, tokenizer, chosen = load_model(model_dir), load_tokenizer(model_dir), settings(model_dir)
    if "system_prompt" in recipe:
        chosen |= {"system_prompt": recipe["system_prompt"]}
        remedy = "leave this setting out for this model (its `model:`)"
        require_system_prompt(tokenizer, chosen, model_dir, remedy)
    prefix = recipe.get("prefix", "")
    opening = answer_opening(tokenizer, chosen) + prefix if prefix else ""
    backend = Transformers(model, tokenizer, chosen, recipe.get("batch_size", "auto"), opening, sampling)
    dependencies = json.dumps([dict(recipe), chosen, input_checksum(model_dir)], sort_keys=True)
    asked = hashlib.sha256(dependencies.encode()).hexdigest()[:12]
    for name, records in sets.items():
        generate_file(backend, records, out / f"{name}.jsonl", recipe["max_new_tokens"], asked)
    for left in out.glob("*.partial"):
        left.unlink()
    recorder.write(
        out / "provenance.json",
        [model_dir, *prompts.values(), *([suffix] if suffix else [])],
        settings={k: chosen[k] for k in ("thinking", "system_prompt")},
        prompts={name: len(records) for name, records in sets.items()},
        batch_size=backend.batch_size,
    )


def with_suffix(prompts: Sequence[Mapping[str, Any]], suffix: Path | None) -> list[dict[str, Any]]:
    """Every prompt, one space and the file's text, as Zou et al. 2023 (arXiv 2307.15043) append theirs.

    ``request`` keeps the prompt as it was. Errors as of :func:`suffix_text`.
    """
    if suffix is None:
        return [dict(p) for p in prompts]
    text = suffix_text(suffix)
    return [{**p, "text": f"{p['text']} {text}", "request": p["text"]} for p in prompts]
