"""A safetensors file whose tensors are written a few rows at a time: what it holds never lies in memory as a whole."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor


class RowsFile:
    """float32 tensors of known shapes, their rows (first axis) in any order; rows never written are zeros.

    Args:
        path: a new file.
        shapes: name → shape.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        self.row_bytes: dict[str, int] = {}
        starts: dict[str, int] = {}
        header, end = {}, 0
        for name, (rows, *rest) in shapes.items():
            self.row_bytes[name] = 4
            for size in rest:
                self.row_bytes[name] *= size
            starts[name], end = end, end + rows * self.row_bytes[name]
            header[name] = {"dtype": "F32", "shape": [rows, *rest], "data_offsets": [starts[name], end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # data begins at a multiple of eight
        self.starts = {name: 8 + len(text) + start for name, start in starts.items()}
        self.file = path.open("wb")
        self.file.write(len(text).to_bytes(8, "little") + text)
        self.file.truncate(8 + len(text) + end)

    def write(self, name: str, rows: Sequence[int], values: Tensor) -> None:
        """``values`` [row, …], in the order of ``rows``."""
        for row, value in zip(rows, values, strict=True):
            self.file.seek(self.starts[name] + row * self.row_bytes[name])
            data = value.contiguous().numpy().tobytes()
            if len(data) != self.row_bytes[name]:
                raise ValueError(f"{name}: a row of {len(data)} bytes, not {self.row_bytes[name]}")
            self.file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()
