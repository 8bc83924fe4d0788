"""Answers to prompts, greedy or drawn, by transformers or vLLM; resumed after a kill with what was not answered."""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.batching import fitting_batch_size, halving
from holdfast.errors import HoldfastError
from holdfast.evaluation.sampling import Sampling
from holdfast.evaluation.shown import Chat, Question
from holdfast.files import write_jsonl
from holdfast.prompts.images import Instruction, Picture, Pictured, check_pictures, pictures_of
from holdfast.prompts.processors import mismatch_told
from holdfast.prompts.sources import read_records, suffix_text, verified_path
from holdfast.prompts.templates import answer_opening, on_device, require_system_prompt
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


@dataclass(frozen=True)
class Asked:
    """A prompt to answer: greedily, or drawn where it has a ``seed``; with its images, where it has any."""

    text: str
    seed: int | None = None
    pictures: tuple[Picture, ...] = ()

    @property
    def instruction(self) -> Instruction:
        return Pictured(self.text, self.pictures) if self.pictures else self.text


# Of a batch: which set, the indices into it, their completions.
Answered = tuple[int, list[int], list[Completion]]


class Backend(Protocol):
    """What answers prompts: ``transformers`` here, vLLM in ``vllm_backend``."""

    def answers(
        self, sets: Sequence[Sequence[Asked]], done: Sequence[Collection[int]], max_new_tokens: int
    ) -> Iterator[Answered]:
        """Completions as they are made, of every prompt of every set but those already ``done`` (indices)."""

    def about(self) -> dict[str, Any]:
        """What the record of a stage says of the backend, once it has answered."""


class Transformers:
    """``generate`` of transformers on a loaded model; ``sampling`` says how answers are drawn."""

    def __init__(
        self,
        model: PreTrainedModel,
        form: Chat,
        batch_size: int | str = "auto",
        sampling: Sampling | None = None,
    ) -> None:
        self.model: Any = model  # `generate` comes from a mixin that type checkers do not follow
        self.form, self.batch_size, self.sampling = form, batch_size, sampling

    def about(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}

    def batches(self, texts: Sequence[Instruction]) -> Iterator[list[int]]:
        """Indices into ``texts``, in the batches they are answered in: the same for the same texts."""
        lengths = self.form.lengths(texts)
        size = (
            fitting_batch_size(self.model, max(lengths))
            if self.batch_size == "auto"
            else int(self.batch_size)
        )
        return self.form.batched(lengths, size)

    def answers(
        self, sets: Sequence[Sequence[Asked]], done: Sequence[Collection[int]], max_new_tokens: int
    ) -> Iterator[Answered]:
        """Set after set, batch after batch; a batch is made whole, with what is done of it."""
        for number, (asked, have) in enumerate(zip(sets, done, strict=True)):
            for indices in self.batches([a.instruction for a in asked]):
                if all(i in have for i in indices):
                    continue
                some = [asked[i] for i in indices]
                seeds = [a.seed for a in some if a.seed is not None]
                yield number, indices, answered(self, [a.instruction for a in some], max_new_tokens, seeds)

    def answer(
        self, texts: Sequence[Instruction], max_new_tokens: int, seeds: Sequence[int] = ()
    ) -> list[Completion]:
        """Completions of one batch: drawn, each with its own of ``seeds``, or greedy without any.

        Raises HoldfastError where the processor's count of an image's tokens is not the model's.
        """
        batch = on_device(self.model, self.form.encoded(texts))
        with torch.inference_mode(), mismatch_told(self.model):
            output = self.model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                logits_processor=self.sampling.processors(seeds) if self.sampling and seeds else None,
                **self.form.padding(),
            )
        ends = self.form.ends(self.model.generation_config)
        return [cut(row, ends, self.form) for row in self.form.written(output, batch["input_ids"].shape[1])]


def cut(row: Sequence[int], ends: Collection[int], form: Chat) -> Completion:
    """A generated row up to and without its first end token, its thought apart."""
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    tokens, reason = list(row[:stop]), "length" if stop is None else "stop"
    thought, answer = form.said(tokens)
    return Completion(answer, tokens, reason, thought)


def answered(
    backend: Transformers, texts: Sequence[Instruction], max_new_tokens: int, seeds: Sequence[int] = ()
) -> list[Completion]:
    """Answers of one batch, in halves when memory runs out."""

    def run(some: Sequence[int]) -> list[Completion]:
        return backend.answer([texts[i] for i in some], max_new_tokens, [seeds[i] for i in some if seeds])

    return list(chain.from_iterable(halving(run, range(len(texts)))))


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Instruction],
    settings: Mapping[str, Any],
    *,
    max_new_tokens: int,
    batch_size: int | str = "auto",
    suffix: str = "",
    progress: str = "answers",
) -> list[Completion]:
    """Greedy answers in the order of ``texts``; ``suffix`` as in :class:`Chat`."""
    backend = Transformers(model, Chat(tokenizer, settings, suffix), batch_size)
    done: dict[int, Completion] = {}
    for indices in tqdm(list(backend.batches(texts)), desc=progress, unit="batch", mininterval=2):
        done.update(zip(indices, answered(backend, [texts[i] for i in indices], max_new_tokens), strict=True))
    return [done[i] for i in range(len(texts))]


def generate_files(
    backend: Backend, sets: Mapping[Path, Sequence[Mapping[str, Any]]], max_new_tokens: int, asked: str
) -> None:
    """Answer prompt sets, each into its file (JSONL, in prompt order); a prompt with a seed, ``draw``, by a draw.

    What is answered is appended to ``FILE.ASKED.partial`` at once; a killed run goes on with what is not whole there.
    With transformers and a given batch size the batches are the same every time, so a resumed file equals an
    uninterrupted one. The partial files stay until the whole stage is done: Snakemake removes the outputs of a
    killed stage, finished or not. ``asked`` stands for everything but the prompts that the answers depend on
    (model, settings, recipe), so that a run is never resumed with answers to something else.
    """
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(Partial(out, prompts, asked)) for out, prompts in sets.items()]
        questions = [
            [Asked(p["text"], p.get("draw"), p.get("pictures", ())) for p in part.prompts] for part in parts
        ]
        total, done = sum(len(part.prompts) for part in parts), sum(len(part.done) for part in parts)
        with tqdm(total=total, initial=done, desc="answers", unit="answer", mininterval=2) as bar:
            indices = [part.indices_done() for part in parts]
            for number, some, completions in backend.answers(questions, indices, max_new_tokens):
                bar.update(parts[number].add(some, completions))
        for part in parts:
            write_jsonl(part.out, [part.done[str(p["id"])] for p in part.prompts])


class Partial:
    """The answers so far to one prompt set, in a file that a kill leaves readable."""

    def __init__(self, out: Path, prompts: Sequence[Mapping[str, Any]], asked: str) -> None:
        self.out, self.prompts = out, prompts
        self.path = out.with_name(f"{out.name}.{asked}.partial")
        self.done: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "Partial":
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.stream = self.path.open("a", encoding="utf-8")
        # A stage whose Snakemake was killed may still be running: wait for it, then go on from what it wrote.
        fcntl.flock(self.stream, fcntl.LOCK_EX)
        wanted = {str(p["id"]): (p["text"], checksums(p)) for p in self.prompts}
        records = whole_records(self.path)
        self.done = {
            r["id"]: r
            for r in records
            if "id" in r and wanted.get(r["id"]) == (r.get("prompt"), r.get("images", []))
        }
        if self.path.stat().st_size:
            self.stream.write("\n")  # ends a line that a kill cut short; empty lines are skipped
        return self

    def __exit__(self, *_error: object) -> None:
        if (
            self.path.is_file() and not self.path.stat().st_size
        ):  # refused before its first answer: nothing to keep
            self.path.unlink()
            with contextlib.suppress(OSError):
                self.out.parent.rmdir()
        self.stream.close()

    def indices_done(self) -> set[int]:
        return {i for i, p in enumerate(self.prompts) if str(p["id"]) in self.done}

    def add(self, indices: Sequence[int], completions: Sequence[Completion]) -> int:
        """Keep these answers; returns how many of them are new."""
        pairs = zip(indices, completions, strict=True)
        records = [generation_record(self.prompts[i], answer) for i, answer in pairs]
        self.stream.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
        self.stream.flush()
        before = len(self.done)
        self.done |= {r["id"]: r for r in records}
        return len(self.done) - before


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


def checksums(prompt: Mapping[str, Any]) -> list[str]:
    """Of the images of a prompt, in their order."""
    return [picture.sha256 for picture in prompt.get("pictures", ())]


def generation_record(prompt: Mapping[str, Any], answer: Completion) -> dict[str, Any]:
    return {
        "id": str(prompt["id"]),
        "prompt_id": str(prompt.get("prompt_id", prompt["id"])),
        **({"sample": prompt["sample"]} if "sample" in prompt else {}),
        "prompt": prompt["text"],
        **({"images": checksums(prompt)} if "pictures" in prompt else {}),
        **({"request": prompt["request"]} if "request" in prompt else {}),
        **({} if answer.thought is None else {"thought": answer.thought}),
        "completion": answer.text,
        "tokens": answer.tokens,
        "finish_reason": answer.finish_reason,
    }


def generate(model_dir: Path, out: Path, prompts: Mapping[str, Path], recipe: Mapping[str, Any]) -> None:
    """Write ``out/NAME.jsonl`` for every prompt set, one model load for all of them.

    ``recipe``: ``max_new_tokens``, ``batch_size`` (number or ``auto``), ``backend`` (``transformers``, ``vllm``); of
    an attack setting also ``system_prompt`` ("" for none), ``prefix`` (opens the answer), ``suffix`` (``file:PATH``,
    its text follows every prompt) with ``sha256``, ``temperature`` with ``top_p``, ``samples`` and ``seed``,
    ``prompts`` (the first so many of each set).
    """
    from holdfast.checkpoints import load_tokenizer, require_processor
    from holdfast.model_folders import settings
    from holdfast.skeletons import answers_questions

    recorder = Recorder("generate", dict(recipe))
    drawn = {k: recipe[k] for k in ("temperature", "top_p", "samples", "seed") if k in recipe}
    sampling = Sampling(**drawn) if drawn else None
    suffix = verified_path(recipe["suffix"], recipe.get("sha256")) if "suffix" in recipe else None
    sets = {}
    for name, path in prompts.items():
        asked_for = with_suffix(with_pictures(path)[: recipe.get("prompts")], suffix)
        sets[name] = [t for p in asked_for for t in sampling.tries(p)] if sampling else asked_for
    pictures = [picture for records in sets.values() for p in records for picture in p.get("pictures", ())]
    if pictures:
        require_processor(model_dir)
        check_pictures(pictures)
    answering = started(recipe, model_dir)
    tokenizer, chosen = load_tokenizer(model_dir), settings(model_dir)
    questions = answers_questions(model_dir)
    if questions and (unfit := sorted({"system_prompt", "prefix", "suffix"} & recipe.keys())):
        what = f"an encoder-decoder that answers questions takes no {unfit[0]}"
        raise HoldfastError(what, str(model_dir), "leave this setting out for this model (its `model:`)")
    if "system_prompt" in recipe:
        chosen |= {"system_prompt": recipe["system_prompt"]}
        remedy = "leave this setting out for this model (its `model:`)"
        require_system_prompt(tokenizer, chosen, model_dir, remedy)
    prefix = recipe.get("prefix", "")
    opening = answer_opening(tokenizer, chosen) + prefix if prefix else ""
    backend = answering((Question if questions else Chat)(tokenizer, chosen, opening), sampling)
    dependencies = json.dumps([dict(recipe), chosen, input_checksum(model_dir)], sort_keys=True)
    asked = hashlib.sha256(dependencies.encode()).hexdigest()[:12]
    files = {out / f"{name}.jsonl": records for name, records in sets.items()}
    generate_files(backend, files, recipe["max_new_tokens"], asked)
    for left in out.glob("*.partial"):
        left.unlink()
    recorder.write(
        out / "provenance.json",
        [model_dir, *prompts.values(), *([suffix] if suffix else [])],
        settings={k: chosen[k] for k in ("thinking", "system_prompt")},
        prompts={name: len(records) for name, records in sets.items()},
        **backend.about(),
    )


def started(recipe: Mapping[str, Any], model_dir: Path) -> Callable[[Chat, Sampling | None], Backend]:
    """The recipe's backend on a model, but for how prompts are shown and answers drawn.

    Raises HoldfastError for an unknown backend, and as :func:`holdfast.checkpoints.load_model` or
    :class:`holdfast.evaluation.vllm_backend.Vllm`.
    """
    name, size = recipe.get("backend", "transformers"), recipe.get("batch_size", "auto")
    if name == "transformers":
        from holdfast.checkpoints import load_model

        model = load_model(model_dir)
        return lambda form, sampling: Transformers(model, form, size, sampling)
    if name == "vllm":
        from holdfast.evaluation.vllm_backend import Vllm

        return lambda form, sampling: Vllm(model_dir, form, size, sampling)
    what = "auto is settled for a whole study" if name == "auto" else f"unknown backend {name!r}"
    raise HoldfastError(what, "evaluate.generate.backend", "use transformers or vllm")


def with_pictures(path: Path) -> list[dict[str, Any]]:
    """The prompt records of a file, those with images with ``pictures`` too; errors as of ``read_records``,
    ``pictures_of``."""
    records = []
    for record in read_records(path):
        pictures = pictures_of(record, path.parent)
        records.append({**record, **({"pictures": pictures} if pictures else {})})
    return records


def with_suffix(prompts: Sequence[Mapping[str, Any]], suffix: Path | None) -> list[dict[str, Any]]:
    """Every prompt, one space and the file's text, as Zou et al. 2023 (arXiv 2307.15043) append theirs.

    ``request`` keeps the prompt as it was. Errors as of :func:`suffix_text`.
    """
    if suffix is None:
        return [dict(p) for p in prompts]
    text = suffix_text(suffix)
    return [{**p, "text": f"{p['text']} {text}", "request": p["text"]} for p in prompts]
