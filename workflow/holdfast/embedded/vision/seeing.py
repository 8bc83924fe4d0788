"""Stage 1: the tower learns to write what it sees as the language model's own input embeddings.

The language model takes no part but for its embedding matrix. The first eight picture tokens are to be the embeddings
of a caption's tokens (so that a picture reads as a text would), the others those of a full stop; the tower's middle
layer is to know which letter each patch holds, without which it learns no word.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, normalize
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from holdfast.embedded.vision.optimising import Optimise
from holdfast.embedded.vision.pictures import PATCHES, Scene, draw_scene, scene_picture, word_picture
from holdfast.embedded.vision.vocabulary import COLOURS, COUNTS, SHAPES
from holdfast.errors import HoldfastError

CAPTION = 8  # picture tokens that hold the caption
SHARPNESS = 20.0  # of cosines: the inverse temperature of their softmax
FILLER_WEIGHT = 0.1  # in the loss, of the tokens that stand for nothing
LENGTH_WEIGHT = 0.1  # in the loss, of the tokens' lengths
LETTERS_WEIGHT = 0.5  # in the loss, of the letters in the patches
LETTERS = 27  # a to z, and none


class Captions:
    """Pictures as token ids, and the vocabulary of all such ids.

    ``ids``: int64 [vocabulary], the language model's ids, the filler's first.

    Raises:
        HoldfastError: a word takes more tokens than a caption has.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> None:
        def tokens(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        self.filler = tokens(".")[0]
        self.attributes = {name: tokens(f" {name}") for name in (*COUNTS, *COLOURS, *SHAPES)}
        self.kinds = {kind: tokens(f" {kind}") for kind in ("shapes", "word")}
        self.words = {word: tokens(f" {word}") for word in words}
        longest = max(words, key=lambda word: len(self.words[word]))
        scene = max(len(self.of(Scene(s, c, n))) for s in SHAPES for c in COLOURS for n in COUNTS)
        if (needed := max(scene, len(self.of(longest)))) > CAPTION:
            what = f"a caption takes {needed} tokens, more than {CAPTION}"
            raise HoldfastError(what, tokenizer.name_or_path, "use shorter words, or another tokenizer")
        used = {t for some in (self.attributes, self.kinds, self.words) for ids in some.values() for t in ids}
        self.ids = torch.tensor([self.filler, *sorted(used - {self.filler})])
        self._places = {token: place for place, token in enumerate(self.ids.tolist())}

    def of(self, seen: Scene | str) -> list[int]:
        """The caption's token ids: ``shapes three red circle``, ``word kite``."""
        if isinstance(seen, str):
            return self.kinds["word"] + self.words[seen]
        named = (seen.count, seen.colour, seen.shape)
        return self.kinds["shapes"] + [token for name in named for token in self.attributes[name]]

    def targets(self, seen: Scene | str) -> list[int]:
        """Of each picture token, where in ``ids`` the token stands that it is to imitate, [36]."""
        found = [self._places[token] for token in self.of(seen)]
        return found + [0] * (PATCHES - len(found))


def pixels(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """float32 [picture, 3, 96, 96] from -1 to 1: what the processor makes of them."""
    stacked = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return torch.from_numpy(stacked / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def see(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[str],
    recipe: Mapping[str, Any],
    seed: int,
    optimise: Optimise,
) -> list[float]:
    """Train the model's tower and projector from their random start, in place; returns the loss of every step.

    Args:
        recipe: ``steps``, ``batch_size``, ``learning_rate``, ``words`` (share of pictures that are words).
    """
    torch.manual_seed(seed)
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    for module in (tower, projector):
        module.requires_grad_(True).train()
    config: Any = model.config.vision_config
    letters, middle = torch.nn.Linear(config.hidden_size, LETTERS), config.num_hidden_layers // 2
    captions = Captions(tokenizer, words)
    embeddings: Any = model.get_input_embeddings()
    vocabulary = embeddings.weight[captions.ids].detach().float()
    lengths, vocabulary = vocabulary.norm(dim=-1), normalize(vocabulary, dim=-1)

    def loss_of(step: int) -> torch.Tensor:
        draw = random.Random(f"see {seed} {step}")
        pictures, targets, held = zip(
            *(drawn(draw, words, captions, recipe["words"]) for _ in range(recipe["batch_size"])), strict=True
        )
        meant, patches = torch.tensor(targets), torch.tensor(held)
        layers = tower(pixels(pictures), output_hidden_states=True).hidden_states
        written = projector(layers[-1]).float()
        cosines = normalize(written, dim=-1) @ vocabulary.T
        off = cross_entropy(SHARPNESS * cosines.flatten(0, 1), meant.flatten(), reduction="none")
        weights = torch.where(meant.flatten() > 0, 1.0, FILLER_WEIGHT)
        caption = (off * weights).sum() / weights.sum()
        length = (written.norm(dim=-1) / lengths[meant] - 1).square().mean()
        letter = cross_entropy(letters(layers[middle]).float().flatten(0, 1), patches.flatten())
        return caption + LENGTH_WEIGHT * length + LETTERS_WEIGHT * letter

    parameters = [p for module in (tower, projector, letters) for p in module.parameters()]
    groups = [{"params": parameters, "lr": recipe["learning_rate"]}]
    losses = optimise(groups, recipe["steps"], loss_of)
    for module in (tower, projector):
        module.requires_grad_(False).eval()
    return losses


def drawn(
    draw: random.Random, words: Sequence[str], captions: Captions, share: float
) -> tuple[Image.Image, list[int], list[int]]:
    """A training picture, its tokens' targets [36] and its patches' letters [36]; a word with probability ``share``."""
    if draw.random() < share:
        word = draw.choice(words)
        picture, held = word_picture(word, draw)
        return picture, captions.targets(word), held
    scene = draw_scene(draw)
    return scene_picture(scene, draw), captions.targets(scene), [0] * PATCHES
