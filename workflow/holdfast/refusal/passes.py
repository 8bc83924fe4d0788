"""Forward passes over a fixed set of prompts, many times under changing interventions.

Three things make them cheap. Prompts are tokenized once. What several prompts of a row begin with alike runs once, and
so does what openings of answers have in common (``prompt_trees``). And where only the blocks from some layer on have
changed, the pass starts there, from block inputs kept from the unchanged model.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from holdfast.architectures import decoder_layers
from holdfast.batching import halving
from holdfast.prompts.processors import mismatch_told
from holdfast.refusal.prompt_trees import Prompts, Rows, as_packs, no_tree_attention

PACK = 8  # prompts a row: of more, what a token sees of others' and is masked costs more than is shared
ALIKE = 0.1  # total variation that half precision may make between two ways of one pass; a wrong one makes about 1


def next_token_logits(model: PreTrainedModel, prompts: Prompts, rows: Rows) -> Tensor:
    """Logits of what follows each prompt and each of its nodes, float32 [prompt, 1 + node, vocabulary].

    Prompts in the order of the rows, those of a pack one after the other. Under whatever intervention is active on
    ``model``.
    """
    inputs = prompts.inputs(model, rows)
    read = [len(pack) * prompts.kept for pack in as_packs(rows)]
    with torch.inference_mode(), mismatch_told(model):
        output = model(**inputs, use_cache=False, logits_to_keep=max(read))
    logits = torch.cat([row[-count:] for row, count in zip(output.logits, read, strict=True)])
    return logits.view(-1, prompts.kept, logits.shape[-1]).float()


def pack_size(model: PreTrainedModel, prompts: Sequence[Prompts], size: int) -> int:
    """How many prompts go into a row, at most ``size``: 1 for a model that does not read several as one by one.

    Tried on the two shortest prompts of each: a recurrent block, for example, minds no mask.
    """
    for asked in prompts:
        if asked.pictured or no_tree_attention(model, max(asked.lengths())):
            return 1
        pack = tuple(sorted(range(len(asked)), key=lambda row: len(asked.ids[row]))[:2])
        together, apart = (
            next_token_logits(model, asked, rows)[:, 0].softmax(-1) for rows in ([pack], list(pack))
        )
        if not ((together - apart).abs().sum(-1) / 2 < ALIKE).all():
            return 1
    return min(PACK, size)


class BlockInputs:
    """Inputs of chosen blocks for every prompt, kept from the model as it is, to start later passes from.

    Memory: prompts × tokens × layers × d_model in the model's dtype, on the host. ``first``: log-probabilities of the
    first answer token, float32 [prompt, vocabulary], from the same passes.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Prompts, layers: Sequence[int], size: int, pack: int = 1
    ) -> None:
        self.prompts = prompts
        self.layers = sorted(set(layers))
        self.kept: list[dict[int, Tensor]] = [{} for _ in range(len(prompts))]
        self.as_tuple = False
        everything = prompts.packs(range(len(prompts)), pack)
        found = halving(lambda packs: self._pass(model, packs), everything, max(1, size // pack))
        rows = [row for packs, _ in found for each in packs for row in each]
        self.first = torch.cat([values for _, values in found])[torch.tensor(rows).argsort()]

    def _pass(
        self, model: PreTrainedModel, packs: Sequence[tuple[int, ...]]
    ) -> tuple[Sequence[tuple[int, ...]], Tensor]:
        layouts = [self.prompts.layout(pack) for pack in packs]
        blocks = decoder_layers(model)
        with contextlib.ExitStack() as stack:
            for layer in self.layers:

                def keep(
                    _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = layer
                ) -> None:
                    x = (args[0] if args else kwargs["hidden_states"]).cpu()
                    for place, (pack, layout) in enumerate(zip(packs, layouts, strict=True)):
                        for row, path in zip(pack, layout.paths, strict=True):
                            self.kept[row][layer] = x[place, -len(layout) :][path]

                stack.callback(blocks[layer].register_forward_pre_hook(keep, with_kwargs=True).remove)

            def note(_module: Any, _args: Any, output: Any) -> None:
                self.as_tuple = isinstance(output, tuple)

            stack.callback(blocks[0].register_forward_hook(note).remove)
            logits = next_token_logits(model, self.prompts, packs)
        return packs, logits[:, 0].log_softmax(-1).cpu()

    def batch(self, layer: int, rows: Rows) -> Tensor:
        """[row, token, d_model], zeros where a row is padded."""
        packs = as_packs(rows)
        layouts = [self.prompts.layout(pack) for pack in packs]
        width = max(map(len, layouts))
        like = self.kept[packs[0][0]][layer]
        stacked = like.new_zeros(len(packs), width, like.shape[-1])
        for place, (pack, layout) in enumerate(zip(packs, layouts, strict=True)):
            for row, path in zip(pack, layout.paths, strict=True):
                stacked[place, width - len(layout) + path] = self.kept[row][layer]
        return stacked

    @contextlib.contextmanager
    def resumed(
        self, model: PreTrainedModel, layer: int, rows: Rows, plus: Tensor | None = None
    ) -> Iterator[None]:
        """While active, a pass over ``rows`` runs from block ``layer`` on, with the kept inputs.

        Plus ``plus``, [d_model] or one a row, [row, d_model]. Blocks below hand their input through. Exact as long as
        nothing below has changed.
        """
        start = self.batch(layer, rows)
        if plus is not None:
            start = start + (plus[:, None] if plus.dim() == 2 else plus).to(start.dtype)
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
