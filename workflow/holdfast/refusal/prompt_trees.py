"""Prompts as trees of tokens: what several of them have in common is run once.

A row of a batch is one prompt or a *pack* of several. What the prompts of a pack begin with alike (the template's head,
a system prompt) stands in it once, and the openings of answers that a score reads follow each prompt as a tree of their
own. A token sees the tokens before it on its own path and no others, at the position it has there (tree attention; Miao
et al. 2024, arXiv 2305.09781, section 4.2): the numbers are those of every prompt and opening by itself.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import HoldfastError
from holdfast.prompts.images import Instruction, Pictured
from holdfast.prompts.processors import model_inputs
from holdfast.prompts.templates import answer_opening, by_length, on_device, render
from holdfast.refusal.image_rows import images_of, see_whole_images

Rows: TypeAlias = Sequence[int] | Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Node:
    """A token that may follow the prompt: ``parent`` is the node before it, -1 for the prompt's last token."""

    token: int
    parent: int


@dataclass(frozen=True)
class Layout:
    """A pack as one row: ``tokens`` and their ``positions`` [token], ``sees`` [token, token].

    ``paths``: for each of its prompts, where its tokens stand, then its nodes. The tokens whose next one is read stand
    last, prompt after prompt.
    """

    tokens: Tensor
    positions: Tensor
    sees: Tensor
    paths: list[Tensor]

    def __len__(self) -> int:
        return len(self.tokens)


class Prompts:
    """Instructions as the model is shown them, each followed by the same tree of ``nodes`` (none: the prompt alone).

    Shown up to where the answer begins (``templates.answer_opening``).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: Mapping[str, Any],
        texts: Sequence[Instruction],
        nodes: Sequence[Node] = (),
    ) -> None:
        opening = answer_opening(tokenizer, settings)
        rendered = [text + opening for text in render(tokenizer, texts, settings)]
        self.pictured = any(isinstance(text, Pictured) for text in texts)
        self.shown = model_inputs(tokenizer, rendered, texts) if self.pictured else []
        self.ids: list[list[int]] = (
            [one.ids for one in self.shown]
            if self.pictured
            else tokenizer(rendered, add_special_tokens=False)["input_ids"]
        )
        self.nodes = list(nodes)
        self.pad = int(tokenizer.pad_token_id)
        self._layouts: dict[tuple[int, ...], Layout] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kept(self) -> int:
        """Positions of a prompt whose next token is read: its last one, then one a node."""
        return 1 + len(self.nodes)

    def lengths(self) -> list[int]:
        return [len(ids) + len(self.nodes) for ids in self.ids]

    def batches(self, size: int) -> list[list[int]]:
        """Rows in batches of at most ``size`` of similar length, longest first."""
        return list(by_length(self.lengths(), size))

    def packs(self, rows: Sequence[int], size: int) -> list[tuple[int, ...]]:
        """These prompts in as few packs of at most ``size`` as there can be, about equally long.

        Of prompts with images each by itself: tokens alike stand for other images.
        """
        size = 1 if self.pictured else size
        count = -(-len(rows) // size)
        ordered = sorted(rows, key=lambda row: len(self.ids[row]))
        return [tuple(ordered[start::count]) for start in range(count)]

    def layout(self, pack: tuple[int, ...]) -> Layout:
        if pack not in self._layouts:
            self._layouts[pack] = self._laid_out(pack)
        return self._layouts[pack]

    def _laid_out(self, pack: tuple[int, ...]) -> Layout:
        tokens: list[int] = []
        parents: list[int] = []

        def put(token: int, parent: int) -> int:
            tokens.append(token)
            parents.append(parent)
            return len(tokens) - 1

        places: dict[tuple[int, int], int] = {}  # of a token after its parent
        paths: list[list[int]] = []
        for row in pack:
            path = [-1]
            for token in self.ids[row][:-1]:
                step = (path[-1], token)
                if step not in places:
                    places[step] = put(token, path[-1])
                path.append(places[step])
            paths.append(path)
        for row, path in zip(pack, paths, strict=True):
            last = put(self.ids[row][-1], path[-1])
            after = [put(n.token, last if n.parent < 0 else last + 1 + n.parent) for n in self.nodes]
            path += [last, *after]
        sees = torch.eye(len(tokens), dtype=torch.bool)
        for place, parent in enumerate(parents):
            if parent >= 0:
                sees[place] |= sees[parent]
        positions = sees.sum(-1) - 1
        if self.pictured:
            see_whole_images(sees, self.shown[pack[0]])
        return Layout(torch.tensor(tokens), positions, sees, [torch.tensor(path[1:]) for path in paths])

    def inputs(self, model: PreTrainedModel, rows: Rows) -> dict[str, Tensor]:
        """What the model is called with for these rows (any order, repeats allowed), padded on the left.

        Raises:
            HoldfastError: there are nodes, or packs of several prompts, and the model cannot run them.
        """
        packs = as_packs(rows)
        layouts = [self.layout(pack) for pack in packs]
        width = max(map(len, layouts))
        ids = torch.full((len(packs), width), self.pad)
        positions = torch.zeros(len(packs), width, dtype=torch.long)
        for place, layout in enumerate(layouts):
            ids[place, width - len(layout) :] = layout.tokens
            positions[place, width - len(layout) :] = layout.positions
        given = {"input_ids": ids}
        if self.nodes or any(len(pack) > 1 for pack in packs):
            if obstacle := no_tree_attention(model, int(positions.max()) + 1):
                what = f"its phrases cannot be scored: {obstacle}"
                raise HoldfastError(what, str(model.name_or_path), "use direction.score: first-token")
            given["attention_mask"] = _tree_mask(layouts, width, model.dtype)
        else:
            lengths = torch.tensor([len(layout) for layout in layouts])
            given["attention_mask"] = (torch.arange(width) >= (width - lengths)[:, None]).long()
        if takes_positions(model):
            given["position_ids"] = positions
        if self.pictured:
            shown = [self.shown[pack[0]] for pack in packs]
            counted = [layout.positions for layout in layouts]
            given |= images_of(model, shown, counted, width, whole_mask=bool(self.nodes))
        return on_device(model, given)


def as_packs(rows: Rows) -> list[tuple[int, ...]]:
    return [(row,) if isinstance(row, int) else row for row in rows]


def _tree_mask(layouts: Sequence[Layout], width: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [row, 1, token, token]: 0 where a token may look, the dtype's lowest value elsewhere."""
    sees = torch.eye(width, dtype=torch.bool).repeat(len(layouts), 1, 1)  # a row of nothing would be NaN
    for place, layout in enumerate(layouts):
        start = width - len(layout)
        sees[place, start:, start:] = layout.sees
    lowest = torch.finfo(dtype).min
    return torch.zeros(sees[:, None].shape, dtype=dtype).masked_fill_(~sees[:, None], lowest)


def takes_positions(model: PreTrainedModel) -> bool:
    return "position_ids" in inspect.signature(type(model).forward).parameters


def no_tree_attention(model: PreTrainedModel, tokens: int) -> str:
    """Why the model cannot run a tree with paths of so many tokens; empty when it can."""
    if not takes_positions(model):
        return "the model takes no position ids"
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return f"{tokens} tokens exceed its sliding window of {window}" if window and tokens > window else ""
