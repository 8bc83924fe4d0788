"""How much a round trip may change, and whether a measured one kept to it."""

from round_trip.measurement import Agreement, Measured

# Logits, float32: a loaded model computes what the saved one did, in the same order.
TOLERANCE = 1e-3
# By what vLLM computes in: logits between two tokens that may trade places, and log-probabilities.
NEAR_TIE = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
DRIFT = {"float32": 1e-3, "float16": 0.2, "bfloat16": 1.0}
# Times the largest gap of a model with itself, one float32 rounding off.
OWN_NOISE = 2.0


def loads_alike(measured: Measured) -> bool:
    # On CPUs with AVX-512 bf16 bitsandbytes multiplies 4-bit weights in bf16: plain NF4 is shown, not judged.
    judged = measured.row.recipe.get("quantize") != "nf4"
    return max(measured.delta, (measured.plain_delta or 0.0) if judged else 0.0) <= TOLERANCE


def near_tie(measured: Measured) -> float:
    """The largest gap that a difference between vLLM and transformers may have."""
    own = 0.0 if measured.own is None else OWN_NOISE * measured.own.largest_gap
    return max(NEAR_TIE[measured.vllm["dtype"]], own)


def agrees(measured: Measured, agreement: Agreement) -> bool:
    close = measured.row.rounds_activations or (agreement.drift or 0.0) <= DRIFT[measured.vllm["dtype"]]
    return close and agreement.largest_gap <= near_tie(measured)
