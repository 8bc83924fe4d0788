"""Fields of a few bits in int32 words, one stream from each word's lowest bit; compressed-tensors' own code."""

import torch


def unpacked(words: torch.Tensor, bits: int, shape: tuple[int, int], dim: int) -> torch.Tensor:
    """int32 words to their fields, 0 … 2**bits - 1, as integers of ``shape``; packed along ``dim``."""
    if 8 % bits == 0:
        # Byte by byte: a ninth of the library's time at most (2, 4 and 8 bits, one core).
        octets = (words.T if dim == 0 else words).contiguous().view(torch.uint8)
        fields = (octets[..., None] >> torch.arange(0, 8, bits, dtype=torch.uint8)) & (2**bits - 1)
        along = fields.flatten(1)[:, : shape[dim]]
        return along.T if dim == 0 else along
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    # The library's layout is the same stream of bits; its fields stand for signed values.
    signed = unpack_from_int32(words, bits, torch.Size(shape), packed_dim=0 if dim == 0 else 1)
    return signed.to(torch.int32) + 2 ** (bits - 1)


def packed(fields: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """The inverse of :func:`unpacked`, of fields of any dtype."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    signed = (fields.to(torch.int32) - 2 ** (bits - 1)).to(torch.int8)
    return pack_to_int32(signed, bits, packed_dim=0 if dim == 0 else 1).contiguous()
