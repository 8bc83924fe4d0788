"""Compressed checkpoints: pruned, quantized, or published by others."""

from holdfast.compression.run import compress

__all__ = ["compress"]
