"""Everything that was done to each compressed model, side by side, with what it cost."""

import math

from holdfast.config.cells import AS_IS, DENSE
from holdfast.report.findings import method_findings
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import MISSING, Table
from holdfast.report.repairs import beside_as_is, beside_controls
from holdfast.report.wording import byte_count, figure, number, p_value, share, usual_n


def methods_table(numbers: Numbers) -> Table | None:
    """None where nothing is done to any compressed model."""
    if not numbers.methods():
        return None
    p, p_control = beside_as_is(numbers), beside_controls(numbers)
    attack, over = (
        usual_n([numbers.get(c, k, m).n for c, k in numbers.cells])
        for m in ("genuine_refusal", "over_refusal")
    )
    rows = []
    order = numbers.compressions.index
    for compression, method in sorted(numbers.cells, key=lambda cell: order(cell[0])):
        if compression == DENSE:
            continue
        get = [
            numbers.get(compression, method, m)
            for m in (
                "genuine_refusal",
                "attack_success_rate",
                "over_refusal",
                "perplexity",
                "method_seconds",
            )
        ]
        rows.append(
            [
                compression,
                method,
                share(get[0], attack),
                share(get[1], attack),
                share(get[2], over),
                share(numbers.zero_shot(compression, method)),
                number(get[3], 1),
                p_value(p.get((compression, method), math.nan)),
                p_value(p_control.get((compression, method), math.nan)),
                figure(get[4].value, 0),
                byte_count(numbers.get(compression, method, "method_bytes").value),
                weights(numbers, compression, method),
            ]
        )
    seconds = [numbers.get(c, AS_IS, "direction_seconds").value for c in numbers.compressions]
    known = [s for s in seconds if not math.isnan(s)]
    directions = f" ({min(known):.0f} to {max(known):.0f} s a model)" if known else ""
    return Table(
        f"{numbers.model}: methods side by side",
        [
            "Compression",
            "Method",
            "Genuine refusal",
            "ASR",
            "Over-refusal",
            "Zero-shot",
            "Perplexity",
            "p against as-is",
            "p against its control",
            "Seconds",
            "Bytes added",
            "Bits a weight / density",
        ],
        rows,
        f"n: {attack} attack prompts, {over} over-refusal prompts; p: exact McNemar on the same attack prompts, by "
        "Holm over the AIRD edits (as in the repair table) and over the other methods apart; of several controls the "
        "one with the largest p counts. "
        "Seconds: of making the method's checkpoint, its search included; AIRD and steering also need the directions "
        f"of both models{directions}, once for all such methods, new calibrations and tunes the dense model's answers "
        "to the train prompts. Bytes: of files that are not the compressed checkpoint's own; a new calibration's "
        "checkpoint takes that one's place.",
        "A method is worth having where it refuses more than as-is without refusing harmless prompts or losing "
        "ability, and a simpler one does not do the same. A system prompt shows in the answers only: perplexity and "
        "zero-shot accuracy are measured without a chat.",
        names=2,
        findings=method_findings(numbers),
    )


def weights(numbers: Numbers, compression: str, method: str) -> str:
    """``4.25`` for quantized weights, ``32 / 0.60`` where the share of weights that are not zero is known."""
    bits, density = (numbers.get(compression, method, m).value for m in ("bits_per_weight", "density"))
    if math.isnan(bits):
        return MISSING
    return f"{bits:.3g}" + ("" if math.isnan(density) else f" / {figure(density, 2)}")
