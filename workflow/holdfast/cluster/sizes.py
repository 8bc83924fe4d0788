"""The size of a model, from its checkpoint's config.json alone: no weights, no torch.

Every cluster job parses the rules again and reads sizes: imports are light.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from holdfast.cluster.families import ALIASES, FAMILIES, UNKNOWN, Family
from holdfast.errors import HoldfastError, first_line

REMEDY = "state billion_parameters of the model in the study"
LARGEST, MOST_LAYERS = 10**9, 10_000  # numbers of a config that can be sizes
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
OVERESTIMATE = 1.1  # of the weights of a family that is not in families.FAMILIES
UNKNOWN_VISION = (
    1_000_000_000  # weights of a vision tower whose config is not understood; most have 0.3 to 0.7 billion
)
PICTURE = 512  # pixels of a side of the pairs' pictures (pairs/drawing.py), which some towers take at their own size
TILES = 5  # that LLaVA-NeXT makes of a picture at most: the whole, and four parts
UNKNOWN_IMAGE = 1024  # tokens of an image where the config does not say; most take 256 to 576


@dataclass(frozen=True)
class Size:
    """Weights of a model by what they belong to, and what else memory and time follow from.

    Attributes:
        embedding: input embeddings, and the output head where it is not tied to them.
        attention, mlp, experts: the decoder's; ``experts`` with their routers.
        other: norms, vision tower, projector.
        active: weights that one token passes through (of the experts, those chosen), without the input embeddings.
        kv_per_token: numbers that the cache of keys and values keeps of one token.
        longest: positions that the config states, 0 where none.
        image_tokens: that an image shown to the model takes of them.
        dtype: of the weights as the config states it.
        bits: bits of a weight of the decoder's linears as stored, scales included; None where they are not quantized.
        exact: False where it is an over-estimate or a rule of thumb.
    """

    embedding: int
    attention: int
    mlp: int
    experts: int
    other: int
    active: int
    layers: int
    hidden: int
    vocabulary: int
    kv_per_token: int
    longest: int = 0
    image_tokens: int = UNKNOWN_IMAGE
    dtype: str = "float32"
    bits: float | None = None
    exact: bool = True

    @property
    def parameters(self) -> int:
        return self.embedding + self.attention + self.mlp + self.experts + self.other

    def loaded_bytes(self, dtype: str | None = None) -> int:
        """Bytes of the weights in memory: Holdfast loads quantized weights dense."""
        return self.parameters * BYTES.get(dtype or self.dtype, 4)

    def stored_bytes(self, dtype: str | None = None, bits: float | None = None) -> int:
        """Bytes of the checkpoint, its decoder's linears in ``bits`` bits each (the config's where None)."""
        each, bits = BYTES.get(dtype or self.dtype, 4), bits or self.bits
        linears = self.attention + self.mlp + self.experts
        return round((self.parameters - linears) * each + linears * (bits / 8 if bits else each))


def size_of(config: Mapping[str, Any], where: str = "config.json") -> Size:
    """The size of the model that a config.json describes.

    Raises:
        HoldfastError: it states no hidden size or number of layers, and its family has no known default; or it holds
            something else where numbers belong.
    """
    try:
        return _size_of(config, where)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise HoldfastError(f"its sizes cannot be read ({first_line(error)})", where, REMEDY) from error


def _size_of(config: Mapping[str, Any], where: str) -> Size:
    text = next(
        (
            config[k]
            for k in ("text_config", "language_config", "llm_config")
            if isinstance(config.get(k), dict)
        ),
        None,
    )
    language = decoder(text if text is not None else config, where)
    dtype = dtype_of(config) or (dtype_of(text) if text else None) or "float32"
    quantized = config.get("quantization_config") or (text or {}).get("quantization_config")
    bits = stored_bits(quantized) if isinstance(quantized, dict) else None
    # A tied head may be said of the whole model only.
    if text is not None and config.get("tie_word_embeddings") is True and "tie_word_embeddings" not in text:
        language = decoder({**text, "tie_word_embeddings": True}, where)
    known = vision(config, language.hidden)  # of flat configs too, as Qwen-VL's on the Hub are
    seen = UNKNOWN_VISION if known is None else known
    return replace(
        language,
        other=language.other + seen,
        active=language.active + seen,
        image_tokens=image_tokens(config),
        bits=bits,
        dtype=dtype,
        exact=language.exact and known is not None,
    )


def guessed(parameters: float, dtype: str = "float32") -> Size:
    """A dense model of so many weights and otherwise of usual proportions: hidden size = 128 times the layers,
    12 hidden² weights a layer, a key-value head for every fourth head, 128,000 tokens.
    """
    hidden = max(64, round((parameters * 128 / 12) ** (1 / 3) / 64) * 64)
    layers = max(1, round(hidden / 128))
    embedding = min(128_000 * hidden, round(parameters / 2))
    attention = round((parameters - embedding) / 4)
    return Size(
        embedding=embedding,
        attention=attention,
        mlp=round(parameters) - embedding - attention,
        experts=0,
        other=0,
        active=round(parameters),
        layers=layers,
        hidden=hidden,
        vocabulary=128_000,
        kv_per_token=2 * layers * hidden // 4,
        dtype=dtype,
        exact=False,
    )


def dtype_of(config: Mapping[str, Any]) -> str | None:
    name = config.get("dtype") or config.get("torch_dtype")
    return str(name).removeprefix("torch.") if name else None


class _Sizes:
    """A decoder's config with the family's defaults, and other families' names of keys."""

    def __init__(self, config: Mapping[str, Any], family: Family, where: str) -> None:
        self.config, self.family, self.where = config, family, where

    def get(self, key: str, default: int = 0) -> int:
        for section in (self.config, self.family.defaults):
            for name in (key, *ALIASES.get(key, ())):
                if type(value := section.get(name)) is int and value >= 0:
                    if value > (MOST_LAYERS if key == "num_hidden_layers" else LARGEST):
                        raise HoldfastError(f"{value:.3g} is no {name}", self.where, REMEDY)
                    return value
        return default

    def need(self, key: str) -> int:
        if not (value := self.get(key)):
            what = f"no {key}, and the family {self.config.get('model_type') or '(none)'} is not known"
            raise HoldfastError(what, self.where, REMEDY)
        return value

    def flag(self, said: str | bool) -> bool:
        if isinstance(said, bool):
            return said
        return bool(self.config.get(said, self.family.defaults.get(said, False)))


def decoder(config: Mapping[str, Any], where: str) -> Size:
    """Weights of a language model; errors as :func:`size_of`."""
    family = FAMILIES.get(str(config.get("model_type")), UNKNOWN)
    about = _Sizes(config, family, where)
    hidden, layers = about.need("hidden_size"), about.need("num_hidden_layers")
    heads = about.need("num_attention_heads")
    kv_heads = about.get("num_key_value_heads") or heads
    head = about.get("head_dim") or hidden // heads
    vocabulary, middle = about.get("vocab_size"), about.get("intermediate_size") or 4 * hidden
    queries, keys = heads * head, kv_heads * head
    attention = hidden * (2 * queries + 2 * keys)
    attention += about.flag(family.qkv_bias) * (queries + 2 * keys) + about.flag(family.o_bias) * hidden
    if "kv_lora_rank" in config:
        attention, keys, queries = latent_attention(about, hidden, heads)
    matrices = 3 if family.gated else 2
    biases = about.flag(family.mlp_bias) * ((matrices - 1) * middle + hidden)
    dense_mlp = matrices * hidden * middle + biases
    sparse, expert_layer, active_experts = experts(about, layers, hidden, middle)
    norm = hidden * (family.norm_weight + family.norm_bias)
    qk = {"head": 2 * head, "whole": queries + keys}.get(family.qk_norm, 0)
    tied = bool(config.get("tie_word_embeddings", family.tied))
    embedding = vocabulary * hidden * (1 if tied else 2) + family.head_bias * vocabulary
    size = Size(
        embedding=embedding,
        attention=layers * attention,
        mlp=(layers - sparse) * dense_mlp,
        experts=sparse * expert_layer,
        other=layers * (family.norms * norm + qk) + norm,
        active=0,
        layers=layers,
        hidden=hidden,
        vocabulary=vocabulary,
        kv_per_token=layers * 2 * keys,
        longest=about.get("max_position_embeddings"),
        exact=family.exact,
    )
    if not family.exact:
        extra = round((OVERESTIMATE - 1) * size.parameters)
        size = replace(size, other=size.other + extra)
    idle = vocabulary * hidden * (0 if tied else 1) + size.experts - sparse * active_experts
    return replace(size, active=size.parameters - idle)


def latent_attention(about: _Sizes, hidden: int, heads: int) -> tuple[int, int, int]:
    """Weights a layer, and numbers of keys and of queries a token, of attention through a latent (DeepSeek-V2, arXiv
    2405.04434, section 2.1). transformers caches keys and values expanded."""
    latent, turned = about.need("kv_lora_rank"), about.get("qk_rope_head_dim")
    plain, value = about.get("qk_nope_head_dim"), about.get("v_head_dim")
    wide = heads * (plain + turned)
    rank = about.get("q_lora_rank")
    queries = hidden * rank + rank + rank * wide if rank else hidden * wide
    keys = hidden * (latent + turned) + latent + latent * heads * (plain + value)
    return queries + keys + heads * value * hidden, heads * (plain + turned + value) // 2, wide


def experts(about: _Sizes, layers: int, hidden: int, middle: int) -> tuple[int, int, int]:
    """How many layers have experts, the weights of one such layer, and how many of these a token passes through.

    Shared experts, which every token passes through, and the router count among them.
    """
    number = about.get("num_experts")
    if not number:
        return 0, 0, 0
    width = about.get("moe_intermediate_size") or middle
    shared = about.get("shared_expert_intermediate_size") or about.get("n_shared_experts") * width
    always = hidden * number + 3 * hidden * shared
    if about.get("shared_expert_intermediate_size"):
        always += hidden  # its gate
    one = 3 * hidden * width
    step = about.get("decoder_sparse_step", 1) or 1
    first, dense = about.get("first_k_dense_replace"), about.config.get("mlp_only_layers") or []
    sparse = sum(1 for n in range(first, layers) if (n + 1) % step == 0 and n not in dense)
    return sparse, always + number * one, always + about.get("num_experts_per_tok", number) * one


def vision(config: Mapping[str, Any], hidden: int) -> int | None:
    """Weights of a CLIP or SigLIP tower and of the projector behind it; None where the config is another's."""
    tower = config.get("vision_config")
    if not isinstance(tower, dict):
        return 0
    kind = tower.get("model_type")
    if kind not in ("clip_vision_model", "siglip_vision_model"):
        return None
    siglip = kind == "siglip_vision_model"
    wide, middle = tower.get("hidden_size", 768), tower.get("intermediate_size", 3072)
    patch, image = tower.get("patch_size", 16 if siglip else 32), tower.get("image_size", 224)
    patches = (image // patch) ** 2
    blocks = tower.get("num_hidden_layers", 12) * block(wide, middle)
    weights = blocks + tower.get("num_channels", 3) * patch**2 * wide + patches * wide
    if siglip:  # a bias of the patches, the last norm; its pooling head has a probe and a block with one norm
        weights += wide + 2 * wide
        if tower.get("vision_use_head", True):
            weights += wide + block(wide, middle) - 2 * wide
    else:  # the class token and its position, the norms before and after
        weights += 2 * wide + 4 * wide
    if config.get("model_type") == "gemma3":
        return int(weights + wide * hidden + wide)
    layers = config.get("vision_feature_layer", -2)
    seen = wide * (len(layers) if isinstance(layers, list) else 1)
    newline = hidden if config.get("model_type") == "llava_next" else 0
    biases = 2 * hidden if config.get("multimodal_projector_bias", True) else 0
    return int(weights + seen * hidden + hidden**2 + biases + newline)


def image_tokens(config: Mapping[str, Any]) -> int:
    """Tokens of the decoder that a picture of PICTURE × PICTURE pixels takes; UNKNOWN_IMAGE where the config does not
    say, as those of towers unlike CLIP's, SigLIP's and Qwen's may not."""
    tower, kind = config.get("vision_config"), str(config.get("model_type"))
    if not isinstance(tower, dict):
        return UNKNOWN_IMAGE
    if type(stated := config.get("mm_tokens_per_image")) is int and stated > 0:
        return stated
    patch, side = tower.get("patch_size"), tower.get("image_size")
    if type(patch) is int and ("spatial_merge_size" in tower or kind.startswith("qwen")):
        patch, side = patch * tower.get("spatial_merge_size", 2), PICTURE
    if type(patch) is not int or type(side) is not int or not 0 < patch <= side:
        return UNKNOWN_IMAGE
    return (side // patch) ** 2 * (TILES if kind == "llava_next" else 1)


def block(wide: int, middle: int) -> int:
    """Weights of a transformer block with biases everywhere and two norms."""
    return 4 * (wide**2 + wide) + 2 * wide * middle + wide + middle + 4 * wide


def stored_bits(quantization: Mapping[str, Any]) -> float | None:
    """Bits a weight takes as stored, a 16-bit scale and, where there is one, a zero point of each group included."""
    method = quantization.get("quant_method")
    if method in ("gptq", "awq") and quantization.get("bits"):
        bits, group = quantization["bits"], quantization.get("group_size") or 128
        return bits + ((16 + bits) / group if group > 0 else 0)
    if method == "bitsandbytes":
        # NF4: a float32 scale for 64 weights (Dettmers et al. 2023, section 3).
        return 4.5 if quantization.get("load_in_4bit") or quantization.get("_load_in_4bit") else 8
    if method in ("fp8", "fbgemm_fp8"):
        return 8
    if method == "compressed-tensors":
        groups = quantization.get("config_groups") or {}
        weights = next((g["weights"] for g in groups.values() if isinstance(g.get("weights"), dict)), None)
        if weights and weights.get("num_bits"):
            group = weights.get("group_size") or 0
            return weights["num_bits"] + (16 / group if group > 0 else 0)
    return None
