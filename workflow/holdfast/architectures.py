"""Where a model keeps its decoder blocks, attention, MLP and their projections: found by structure.

Nothing here knows a family's names. The language model is what owns the input embedding; its blocks are the
longest list in it; attention is the child of a block that is given an attention mask, the MLP the other child
with linears; what writes to the residual stream is the last linear of each whose output width is d_model.
A vision tower's blocks are the longest list outside the language model. Quantized linears count: bitsandbytes
and compressed-tensors both subclass ``nn.Linear``.
"""

import inspect
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from holdfast.errors import HoldfastError

Writer = Literal["o_proj", "down_proj"]
Part = Literal["language", "vision", "projector"]


def language_model(model: nn.Module) -> nn.Module:
    """The smallest module that owns both the input embedding and a list of blocks.

    For a causal language model the body without its head; for a vision-language model the text decoder only.

    Raises:
        HoldfastError: the model has no input embedding, or nothing above it holds a list of blocks.
    """
    get: Any = getattr(model, "get_input_embeddings", lambda: None)
    embedding = get()
    if isinstance(embedding, nn.Module):
        ancestors = [module for module in model.modules() if any(m is embedding for m in module.modules())]
        for module in reversed(ancestors):  # modules() names parents before children
            if _block_lists(module):
                return module
    raise _unsupported("no list of decoder blocks beside the input embedding", model)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder blocks of the language model, in order; ``[n_layers]`` modules.

    Raises:
        HoldfastError: see :func:`language_model`.
    """
    return max((list(blocks) for blocks in _block_lists(language_model(model))), key=len)


def attention(layer: nn.Module) -> nn.Module:
    """The attention module of a decoder block: its child whose forward takes an attention mask.

    Raises:
        HoldfastError: there is none, or more than one (encoder-decoder blocks, state-space blocks).
    """
    return _only([c for c in layer.children() if _linears(c) and _takes_mask(c)], "attention module", layer)


def mlp(layer: nn.Module) -> nn.Module:
    """The MLP of a decoder block, or its mixture of experts with the router: its child with linears or stacked
    expert weights that takes no attention mask.

    Raises:
        HoldfastError: there is none (its linears stand in the block itself), or more than one.
    """
    found = [c for c in layer.children() if (_linears(c) or _stacked_experts(c)) and not _takes_mask(c)]
    return _only(found, "MLP module", layer)


def writer(layer: nn.Module, kind: Writer) -> nn.Linear:
    """The projection through which attention (``o_proj``) or the MLP (``down_proj``) writes to the residual
    stream: weight (d_model, d_in). Named o_proj, c_proj, out_proj, dense, w2, dense_4h_to_h… by family.

    Raises:
        HoldfastError: the module has no linear of that width, or is a mixture of experts.
    """
    width = _first_linear(attention(layer)).in_features
    part = attention(layer) if kind == "o_proj" else mlp(layer)
    if _stacked_experts(part) or any(isinstance(module, nn.ModuleList) for module in part.modules()):
        other = "o_proj" if kind == "down_proj" else "down_proj"
        what = f"the matrices of several experts cannot be edited as one {kind}"
        raise HoldfastError(what, type(part).__name__, f"leave {kind} out (matrices: [{other}])")
    writing = [linear for linear in _linears(part).values() if linear.out_features == width]
    if not writing:
        raise _unsupported(f"no linear layer writes {width} values to the residual stream", part)
    return writing[-1]


def layer_linears(layer: nn.Module, *, whole: bool = True) -> dict[str, nn.Linear]:
    """Every linear of a decoder block by its name within the block, in the order of definition.

    Args:
        whole: refuse a block that has expert weights beside its linears; else those are left out.

    Raises:
        HoldfastError: expert weights are stacked into one tensor, or the block has no ``nn.Linear`` at all
            (GPT-2's transposed ``Conv1D``).
    """
    if whole and (stacked := _stacked_experts(layer)):
        raise _unsupported(f"expert weights stacked in one tensor ({stacked}) cannot be compressed", layer)
    found = _linears(layer)
    if not found:
        raise _unsupported("no torch.nn.Linear in the block", layer)
    return found


def decoder_linears(model: nn.Module, *, whole: bool = True) -> dict[str, nn.Linear]:
    """Every linear of every decoder block by its full name: what compression acts on. See :func:`layer_linears`.

    Of an encoder-decoder (BLIP) those of both.
    """
    layers = [*decoder_layers(model), *_answering_layers(model)]
    names = {id(module): name for name, module in model.named_modules()}
    return {
        f"{names[id(layer)]}.{name}": linear
        for layer in layers
        for name, linear in layer_linears(layer, whole=whole).items()
    }


def part_linears(model: nn.Module, parts: Iterable[Part], *, whole: bool = True) -> dict[str, nn.Linear]:
    """The linears of one or more parts of a model by their full names, in the model's order.

    ``language`` is :func:`decoder_linears`. ``vision`` is the tower: its blocks and what belongs to them.
    ``projector`` is everything between the tower and the language model, wherever it is defined: beside the
    tower (LLaVA) or as mergers inside its module (Qwen-VL).

    Raises:
        HoldfastError: the model has no such part, or no linear in it; see also :func:`decoder_linears`.
    """
    wanted: set[int] = set()
    for part in parts:
        found = (
            decoder_linears(model, whole=whole)
            if part == "language"
            else _beside_the_language_model(model)[part]
        )
        if not found:
            raise HoldfastError(
                f"no linear layers in a {part} part", type(model).__name__, f"leave {part} out of the parts"
            )
        wanted |= {id(linear) for linear in found.values()}
    return {name: linear for name, linear in _linears(model).items() if id(linear) in wanted}


def vision_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of the vision tower, in order; none in a language model. Errors as :func:`language_model`."""
    return list(_tower(model) or [])


def module_name(model: nn.Module, module: nn.Module) -> str:
    """The dotted name of ``module`` in ``model``, as in its state dict.

    Raises:
        HoldfastError: it is not part of the model.
    """
    for name, candidate in model.named_modules():
        if candidate is module:
            return name
    raise _unsupported(f"a {type(module).__name__} is not part of it", model)


def _beside_the_language_model(model: nn.Module) -> dict[str, dict[str, nn.Linear]]:
    """The linears of the vision tower and of the projector; both empty in a language model."""
    language, known, tower = language_model(model), _of_language(model), _tower(model)
    parts: dict[str, dict[str, nn.Linear]] = {"vision": {}, "projector": {}}
    if tower is None:
        return parts
    width = _first_linear(tower).in_features
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    for path in _branches(model, tower):
        branch = model.get_submodule(path)
        linears = {f"{path}.{n}".rstrip("."): m for n, m in _linears(branch).items() if id(m) not in known}
        if not linears or branch is language:
            continue
        first, last = next(iter(linears.values())), list(linears.values())[-1]
        # Inside the tower's module: a merger ends in the language model's width. Where both widths are equal
        # it is told from a pooling head by its input, several patches wide.
        parent = model.get_submodule(path.rpartition(".")[0])
        outside = any(m is language for m in parent.modules())
        merges = last.out_features == embedding.weight.shape[1] and (
            last.out_features != width or first.in_features != width
        )
        parts["projector" if branch is not tower and (outside or merges) else "vision"].update(linears)
    return parts


def _of_language(model: nn.Module) -> set[int]:
    """The modules of the language model and its head, by identity."""
    get: Any = getattr(model, "get_output_embeddings", lambda: None)
    stacks = [language_model(model), *_answering(model)]
    return {id(module) for stack in stacks for module in stack.modules()} | {id(get())}


def _answering(model: nn.Module) -> list[nn.Module]:
    """The decoders of an encoder-decoder: what stands beside the language model with words of its own to embed."""
    language, embedding = language_model(model), model.get_input_embeddings()  # type: ignore[operator]
    words = embedding.weight.shape[0]
    return [
        child
        for child in model.children()
        if not any(module is language for module in child.modules())
        and any(isinstance(m, nn.Embedding) and m.num_embeddings == words for m in child.modules())
    ]


def _answering_layers(model: nn.Module) -> list[nn.Module]:
    return [
        block
        for stack in _answering(model)
        for block in max((list(blocks) for blocks in _block_lists(stack)), key=len, default=[])
    ]


def _tower(model: nn.Module) -> nn.ModuleList | None:
    """The vision tower's blocks: the longest list outside the language model, None in a language model."""
    known = _of_language(model)
    lists = [
        blocks
        for blocks in model.modules()
        if isinstance(blocks, nn.ModuleList) and id(blocks) not in known and _linears(blocks)
    ]
    return max(lists, key=len, default=None)


def _branches(model: nn.Module, tower: nn.Module, path: str = "") -> list[str]:
    """Names of the tower's blocks and of all that stands beside them: the children, themselves without the
    blocks, of every module that contains them."""
    found: list[str] = []
    for name, child in model.get_submodule(path).named_children():
        full = f"{path}.{name}" if path else name
        inside = child is not tower and any(m is tower for m in child.modules())
        found += _branches(model, tower, full) if inside else [full]
    return found


def _block_lists(module: nn.Module) -> list[nn.ModuleList]:
    """Lists of modules that all hold linears or weights of their own, outermost only."""
    found: list[nn.ModuleList] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            if len(child) and all(next(block.parameters(), None) is not None for block in child):
                found.append(child)
        else:
            found += _block_lists(child)
    return found


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}


def _first_linear(module: nn.Module) -> nn.Linear:
    return next(iter(_linears(module).values()))


def _takes_mask(module: nn.Module) -> bool:
    # Behind accelerate's or llm-compressor's wrappers the class still has the signature.
    return "attention_mask" in inspect.signature(type(module).forward).parameters


def _only(found: list[nn.Module], what: str, layer: nn.Module) -> nn.Module:
    if len(found) != 1:
        raise _unsupported(f"{len(found)} candidates for the {what} of a block, not one", layer)
    return found[0]


def _stacked_experts(module: nn.Module) -> str | None:
    """The name of the first parameter that is one matrix per expert, if there is any."""
    for name, parameter in module.named_parameters():
        # Depthwise convolutions of linear-attention blocks have three dimensions too but are modules of their own.
        owner = module.get_submodule(name.rpartition(".")[0])
        if parameter.dim() > 2 and not isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return name
    return None


def _unsupported(what: str, module: nn.Module) -> HoldfastError:
    return HoldfastError(
        what, type(module).__name__, "use a dense decoder-only model, or extend holdfast/architectures.py"
    )
