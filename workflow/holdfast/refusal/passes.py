"""Forward passes over a fixed set of prompts, many times under changing interventions.

Three things make them cheap. Prompts are tokenized once. The openings of answers that a score reads follow each prompt
as one tree in the same pass: a token sees its prompt and the tokens before it in its own opening, no others (tree
attention; Miao et al. 2024, arXiv 2305.09781, section 4.2). And where only the blocks from some layer on have changed,
the pass starts there, from block inputs kept from the unchanged model.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.architectures import decoder_layers
from holdfast.errors import HoldfastError
from holdfast.prompts.templates import answer_opening, by_length, render


@dataclass(frozen=True)
class Node:
    """A token that may follow the prompt: ``parent`` is the node before it, -1 for the prompt's last token."""

    token: int
    parent: int


class Prompts:
    """Instructions as the model is shown them, each followed by the same tree of ``nodes`` (none: the prompt alone).

    Shown up to where the answer begins (``templates.answer_opening``).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: Mapping[str, Any],
        texts: Sequence[str],
        nodes: Sequence[Node] = (),
    ) -> None:
        opening = answer_opening(tokenizer, settings)
        rendered = [text + opening for text in render(tokenizer, texts, settings)]
        self.ids: list[list[int]] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        self.nodes = list(nodes)
        self.pad = int(tokenizer.pad_token_id)
        self.above = torch.eye(len(self.nodes), dtype=torch.bool)  # [node, itself and those before it]
        depths: list[int] = []
        for number, node in enumerate(self.nodes):
            depths.append(1 if node.parent < 0 else depths[node.parent] + 1)
            if node.parent >= 0:
                self.above[number] |= self.above[node.parent]
        self.depths = torch.tensor(depths, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kept(self) -> int:
        """Positions whose next token is read: the prompt's last one, then one a node."""
        return 1 + len(self.nodes)

    def lengths(self) -> list[int]:
        return [len(ids) + len(self.nodes) for ids in self.ids]

    def batches(self, size: int) -> list[list[int]]:
        """Rows in batches of at most ``size`` of similar length, longest first."""
        return list(by_length(self.lengths(), size))

    def inputs(self, model: PreTrainedModel, rows: Sequence[int]) -> dict[str, Tensor]:
        """What the model is called with for these rows (any order, repeats allowed), padded on the left.

        Raises:
            HoldfastError: there are nodes and the model takes no position ids, or a row is longer than a sliding
                window of its attention.
        """
        lengths = torch.tensor([len(self.ids[row]) for row in rows])
        width = int(lengths.max())
        ids = torch.tensor([[self.pad] * (width - len(self.ids[row])) + self.ids[row] for row in rows])
        real = torch.arange(width) >= (width - lengths)[:, None]
        takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters
        positions = (real.cumsum(-1) - 1).clamp(min=0)
        given = {"input_ids": ids, "attention_mask": real.long()}
        if self.nodes:
            _refuse_without_tree_attention(model, takes_positions, width + len(self.nodes))
            following = torch.tensor([[node.token for node in self.nodes]]).expand(len(rows), -1)
            given["input_ids"] = torch.cat([ids, following], -1)
            given["attention_mask"] = self._tree_mask(real, model.dtype)
            positions = torch.cat([positions, lengths[:, None] - 1 + self.depths], -1)
        if takes_positions:
            given["position_ids"] = positions
        return {name: value.to(model.device) for name, value in given.items()}

    def _tree_mask(self, real: Tensor, dtype: torch.dtype) -> Tensor:
        """Additive mask [row, 1, token, token]: 0 where a token may look, the dtype's lowest value elsewhere."""
        rows, width = real.shape
        total = width + len(self.nodes)
        sees = torch.zeros(rows, total, total, dtype=torch.bool)
        sees[:, :width, :width] = torch.ones(width, width, dtype=torch.bool).tril() & real[:, None]
        sees[:, width:, :width] = real[:, None]
        sees[:, width:, width:] = self.above
        sees |= torch.eye(total, dtype=torch.bool)  # padding sees itself: a row of nothing would be NaN
        return torch.zeros(rows, 1, total, total, dtype=dtype).masked_fill_(
            ~sees[:, None], torch.finfo(dtype).min
        )


def _refuse_without_tree_attention(model: PreTrainedModel, takes_positions: bool, tokens: int) -> None:
    remedy = "use direction.score: first-token"
    if not takes_positions:
        what = "its phrases cannot be scored: the model takes no position ids"
        raise HoldfastError(what, str(model.name_or_path), remedy)
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window and tokens > window:
        what = f"its phrases cannot be scored: {tokens} tokens exceed its sliding window of {window}"
        raise HoldfastError(what, str(model.name_or_path), remedy)


def next_token_logits(model: PreTrainedModel, prompts: Prompts, rows: Sequence[int]) -> Tensor:
    """Logits of what follows the prompt and each node, float32 [row, 1 + node, vocabulary].

    Under whatever intervention is active on ``model``.
    """
    inputs = prompts.inputs(model, rows)
    with torch.inference_mode():
        output = model(**inputs, use_cache=False, logits_to_keep=prompts.kept)
    return output.logits[:, -prompts.kept :].float()


class BlockInputs:
    """Inputs of chosen blocks for every prompt, kept from the model as it is, to start later passes from.

    Memory: prompts × tokens × layers × d_model in the model's dtype, on the host.
    """

    def __init__(self, model: PreTrainedModel, prompts: Prompts, layers: Sequence[int], size: int) -> None:
        self.prompts = prompts
        self.layers = sorted(set(layers))
        self.kept: list[dict[int, Tensor]] = [{} for _ in range(len(prompts))]
        self.as_tuple = False
        lengths = prompts.lengths()
        blocks = decoder_layers(model)
        for rows in prompts.batches(size):
            with contextlib.ExitStack() as stack:
                for layer in self.layers:

                    def keep(
                        _module: Any,
                        args: tuple[Any, ...],
                        kwargs: dict[str, Any],
                        layer: int = layer,
                        rows: list[int] = rows,
                    ) -> None:
                        x = args[0] if args else kwargs["hidden_states"]
                        for place, row in enumerate(rows):
                            self.kept[row][layer] = x[place, -lengths[row] :].cpu()

                    stack.callback(blocks[layer].register_forward_pre_hook(keep, with_kwargs=True).remove)

                def note(_module: Any, _args: Any, output: Any) -> None:
                    self.as_tuple = isinstance(output, tuple)

                stack.callback(blocks[0].register_forward_hook(note).remove)
                next_token_logits(model, prompts, rows)

    def batch(self, layer: int, rows: Sequence[int]) -> Tensor:
        """[row, token, d_model], zeros where a row is padded."""
        found = [self.kept[row][layer] for row in rows]
        width = max(map(len, found))
        stacked = torch.zeros(len(rows), width, found[0].shape[-1], dtype=found[0].dtype)
        for place, x in enumerate(found):
            stacked[place, width - len(x) :] = x
        return stacked

    @contextlib.contextmanager
    def resumed(
        self, model: PreTrainedModel, layer: int, rows: Sequence[int], plus: Tensor | None = None
    ) -> Iterator[None]:
        """While active, a pass over ``rows`` runs from block ``layer`` on, with the kept inputs (+ ``plus``).

        Blocks below hand their input through. Exact as long as nothing below has changed.
        """
        start = self.batch(layer, rows)
        start = start if plus is None else start + plus.to(start.dtype)
        blocks = decoder_layers(model)

        def through(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
            return (hidden_states,) if self.as_tuple else hidden_states

        def begin(
            _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            x = args[0] if args else kwargs["hidden_states"]
            now = start.to(x.device, x.dtype)
            return ((now, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": now})

        own = [block.__dict__.get("forward") for block in blocks[:layer]]
        handle = blocks[layer].register_forward_pre_hook(begin, with_kwargs=True, prepend=True)
        try:
            for block in blocks[:layer]:
                block.forward = through
            yield
        finally:
            handle.remove()
            for block, forward in zip(blocks[:layer], own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward
