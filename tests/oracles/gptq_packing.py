"""The auto-gptq layout in plain loops: fields of a few bits, one after another from each word's lowest bit."""


def packed(fields: list[int], bits: int) -> list[int]:
    """Fields 0 … 2**bits - 1 as signed 32-bit words; as many bits as fill whole words."""
    stream = [field >> bit & 1 for field in fields for bit in range(bits)]
    words = []
    for start in range(0, len(stream), 32):
        word = sum(bit << place for place, bit in enumerate(stream[start : start + 32]))
        words.append(word - 2**32 if word >= 2**31 else word)
    return words


def unpacked(words: list[int], bits: int) -> list[int]:
    """The inverse of :func:`packed`."""
    stream = [(word % 2**32) >> place & 1 for word in words for place in range(32)]
    starts = range(0, len(stream) - bits + 1, bits)
    return [sum(stream[start + bit] << bit for bit in range(bits)) for start in starts]


def dequantized(
    qweight: list[list[int]],
    qzeros: list[list[int]],
    scales: list[list[float]],
    groups: list[int],
    bits: int,
    stored_zero_is_less_one: bool,
) -> list[list[float]]:
    """Rows of outputs: scales[g][o] * (q[i][o] - zeros[g][o]), g the group of input i."""
    outputs, inputs = len(qweight[0]), len(groups)
    codes = [unpacked([row[o] for row in qweight], bits) for o in range(outputs)]
    zeros = [[z + stored_zero_is_less_one for z in unpacked(row, bits)] for row in qzeros]
    return [
        [scales[groups[i]][o] * (codes[o][i] - zeros[groups[i]][o]) for i in range(inputs)]
        for o in range(outputs)
    ]
