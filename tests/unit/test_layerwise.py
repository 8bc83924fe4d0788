import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from families import SEQUENCES, built
from holdfast.architectures import decoder_layers
from holdfast.compression import layerwise
from holdfast.compression.layerwise import compress_layers, writable_weight
from holdfast.compression.pruning import prune
from holdfast.errors import HoldfastError
from torch import nn

HALF = {"sparsity": 0.5}


class Counted:
    """Tokens seen; every instance is listed."""

    made: list["Counted"]

    def __init__(self, width: int, _device: torch.device) -> None:
        self.width, self.tokens = width, 0
        Counted.made.append(self)

    def add(self, inputs: torch.Tensor) -> None:
        self.tokens += len(inputs)


def test_linears_fed_with_one_tensor_share_a_statistic_of_every_token() -> None:
    Counted.made = []
    users: dict[int, list[str]] = {}
    compress_layers(
        built("Llama"),
        SEQUENCES,
        Counted,
        lambda name, _linear, counted: users.setdefault(id(counted), []).append(name.rpartition(".")[2]),
        "count",
    )
    assert [c.tokens for c in Counted.made] == [53] * 12
    assert [c.width for c in Counted.made[:4]] == [32, 32, 32, 48]
    shared = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert list(users.values())[:4] == shared


def test_masks_and_rotary_embeddings_are_stored_once() -> None:
    model = built("Gemma3Text", sliding_window=4, head_dim=8, num_key_value_heads=2)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        _, calls, _ = layerwise._first_inputs(model, decoder_layers(model), SEQUENCES)
    kwargs = [[keywords for _, keywords in layer_calls] for layer_calls in calls]
    assert kwargs[0][0]["attention_mask"] is kwargs[0][2]["attention_mask"]
    assert kwargs[0][0]["attention_mask"] is kwargs[1][2]["attention_mask"]
    assert kwargs[0][0]["attention_mask"].shape != kwargs[0][1]["attention_mask"].shape
    assert kwargs[0][0]["position_embeddings"][0] is kwargs[1][2]["position_embeddings"][0]
    assert kwargs[0][0]["position_embeddings"][0] is not kwargs[0][0]["position_embeddings"][1]


class Bypassed(nn.Module):
    """An MLP that calls only some of its linears."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.whole.up_proj(x)[..., :32]


def test_a_linear_that_no_token_reaches_is_an_error() -> None:
    model = built("Llama")
    model.model.layers[1].mlp = Bypassed(model.model.layers[1].mlp)
    with pytest.raises(HoldfastError, match=r"layers\.1\.mlp\.whole\.gate_proj: no calibration token"):
        prune(model, {"prune": "wanda", **HALF}, SEQUENCES)


class Alternating(nn.Module):
    """An MLP whose linears get one tensor on long sequences and different ones on short sequences."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.up, self.gate = whole.up_proj, whole.gate_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.up(x) + self.gate(x if x.shape[1] > 15 else x + 1))[..., :32]


def test_inputs_shared_on_some_sequences_only_are_an_error() -> None:
    model = built("Llama")
    model.model.layers[1].mlp = Alternating(model.model.layers[1].mlp)
    with pytest.raises(HoldfastError, match="on some sequences only"):
        prune(model, {"prune": "sparsegpt", **HALF}, SEQUENCES)


def test_what_is_written_to_a_loaded_copy_goes_back_to_main_memory() -> None:
    linear = nn.Linear(4, 3, bias=False)
    # Stored in another dtype, so that loading copies on a CPU too, as it does on a GPU.
    stored = {"weight": linear.weight.data.bfloat16()}
    device = torch.device("cpu")
    add_hook_to_module(linear, AlignDevicesHook(device, offload=True, weights_map=stored))
    with writable_weight(linear) as weight:
        assert weight.dtype == torch.float32
        weight.fill_(2)
    assert linear.weight.is_meta
    assert (stored["weight"] == 2).all()
