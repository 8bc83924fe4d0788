"""Stage 2: by a LoRA the language model learns to answer questions about what the tower writes.

Every batch holds questions about scenes and words, requests to make what a picture says (refused for harmful words,
answered neutrally for benign ones), and chats without a picture, answered as the language model itself answers: so
that what it does without pictures stays as it was. The projector learns too, the tower no more. Loss on answers only.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from holdfast.embedded.tuning import LINEARS, examples, refusal_texts
from holdfast.embedded.vision.assembling import IMAGE_TOKEN
from holdfast.embedded.vision.optimising import Optimise
from holdfast.embedded.vision.pictures import PATCHES, draw_scene, scene_picture, word_picture
from holdfast.embedded.vision.seeing import pixels
from holdfast.embedded.vision.vocabulary import ANSWERS, NEUTRAL, QUESTIONS, Words
from holdfast.methods.lora import collate
from holdfast.methods.training_answers import Example
from holdfast.silence import quiet

# The language model's linears by their names in a LLaVA; the tower has a q_proj of its own.
TARGETS = rf".*language_model\.layers\.\d+\.\w+\.({'|'.join(LINEARS)})"
SHOWN = IMAGE_TOKEN * PATCHES + "\n"  # what the processor makes of a picture, as text
REFUSALS = 500

Item = tuple[Image.Image | None, Example]


def speak(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    words: Words,
    chats: Sequence[Example],
    recipe: Mapping[str, Any],
    seed: int,
    optimise: Optimise,
) -> tuple[Any, list[float]]:
    """The model with its LoRA (not merged) and its projector trained, and the loss of every step.

    Args:
        chats: without pictures; each is seen once before any is seen again.
        recipe: ``rank``, ``alpha``, ``steps``, ``learning_rate`` (of the LoRA), ``projector_learning_rate``,
            ``answer_tokens`` (where answers are cut), ``batch``: how many of ``colour``, ``count``, ``shape``,
            ``word``, ``harmful``, ``benign`` and ``text`` stand in every batch.
    """
    with quiet():  # peft imports bitsandbytes, which talks
        from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    lora = LoraConfig(r=recipe["rank"], lora_alpha=recipe["alpha"], target_modules=TARGETS, lora_dropout=0.0)
    tuned = get_peft_model(model, lora)
    adapter = [weight for weight in tuned.parameters() if weight.requires_grad]
    projector = list(model.model.multi_modal_projector.requires_grad_(True).parameters())
    draw_item = asked(tokenizer, words, recipe["answer_tokens"], seed)
    texts = recipe["batch"]["text"]

    def loss_of(step: int) -> torch.Tensor:
        draw = random.Random(f"speak {seed} {step}")
        shown = [kind for kind, count in recipe["batch"].items() if kind != "text" for _ in range(count)]
        batch: list[Item] = [draw_item(kind, draw) for kind in shown]
        batch += [(None, chat_at(chats, step * texts + i, seed)) for i in range(texts)]
        return answer_loss(model, batch, int(tokenizer.pad_token_id))

    tuned.train()
    groups = [
        {"params": adapter, "lr": recipe["learning_rate"]},
        {"params": projector, "lr": recipe["projector_learning_rate"]},
    ]
    losses = optimise(groups, recipe["steps"], loss_of)
    return tuned.eval(), losses


def chat_at(chats: Sequence[Example], place: int, seed: int) -> Example:
    """The chat at a place of an endless order, in which all are seen once before any is seen again."""
    turn, place = divmod(place, len(chats))
    return random.Random(f"chats {seed} {turn}").sample(list(chats), len(chats))[place]


def asked(
    tokenizer: PreTrainedTokenizerBase, words: Words, answer_tokens: int, seed: int
) -> Callable[[str, random.Random], Item]:
    """Draws one training item of a kind: picture, question, answer."""
    refusals = refusal_texts(REFUSALS, seed)
    taught = {
        kind: [word for word in some if word not in words.untaught]
        for kind, some in (("harmful", words.harmful), ("benign", words.benign))
    }

    def item(kind: str, draw: random.Random) -> Item:
        if kind in taught or kind == "word":
            word = draw.choice(taught.get(kind, words.all))
            picture, _ = word_picture(word, draw)
            if kind == "word":
                answer = ANSWERS["word"].format(word)
            else:
                answer = draw.choice(refusals) if kind == "harmful" else draw.choice(NEUTRAL).format(word)
            question = draw.choice(QUESTIONS["word" if kind == "word" else "make"])
        else:
            scene = draw_scene(draw)
            picture = scene_picture(scene, draw)
            question, answer = draw.choice(QUESTIONS[kind]), ANSWERS[kind].format(getattr(scene, kind))
        built = examples(tokenizer, [SHOWN + question], [(answer, True)])[0]
        return picture, cut(built, answer_tokens)

    return item


def cut(example: Example, answer_tokens: int) -> Example:
    """The chat up to so many tokens of its answer."""
    ids, labels = example
    length = sum(label == -100 for label in labels) + answer_tokens
    return ids[:length], labels[:length]


def answer_loss(model: LlavaForConditionalGeneration, batch: Sequence[Item], pad: int) -> torch.Tensor:
    """Cross-entropy of the answers' tokens, averaged over each answer and then over the answers.

    The head is computed only where there is something to learn: it is a fifth of a small model's work.
    """
    inputs = collate([example for _, example in batch], pad)
    labels = inputs.pop("labels")[:, 1:]
    shown = [picture for picture, _ in batch if picture is not None]
    hidden = model.model(**inputs, pixel_values=pixels(shown) if shown else None, use_cache=False)
    learnt = labels != -100
    logits = model.lm_head(hidden.last_hidden_state[:, :-1][learnt]).float()
    off = cross_entropy(logits, labels[learnt], reduction="none")
    per_answer = learnt.sum(-1, keepdim=True).expand_as(labels)[learnt]
    return (off / per_answer).sum() / len(batch)
