"""Numbers for every prompt that are too many to stay in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Numbers = Sequence[int] | Int[np.ndarray, " row"]


class StoredRows:
    """A table [row, column] of float32 in a temporary file without a name: it takes disk and no memory.

    Indexing with row numbers reads and writes whole rows; the file goes with the object.
    """

    def __init__(self, n_rows: int, device: torch.device) -> None:
        self.n_rows, self.device = n_rows, device
        self._file, self._width = tempfile.TemporaryFile(), 0  # noqa: SIM115 (it lives as long as the object)

    def __len__(self) -> int:
        return self.n_rows

    def __reduce__(self):
        """To another process it goes by value."""
        return _filled, (self[range(self.n_rows)] if self._width else None, self.n_rows, self.device)

    def __setitem__(self, rows: Numbers, values: Float[Tensor, "row column"]) -> None:
        self._width = values.shape[1]
        for row, line in zip(rows, values.float().cpu().numpy(), strict=True):
            self._file.seek(int(row) * self._width * 4)
            self._file.write(np.ascontiguousarray(line).data)

    def __getitem__(self, rows: Numbers) -> Float[Tensor, "row column"]:
        out = np.empty((len(rows), self._width), dtype=np.float32)
        for row, line in zip(rows, out, strict=True):
            self._file.seek(int(row) * self._width * 4)
            self._file.readinto(line.data)
        return torch.from_numpy(out).to(self.device)


def _filled(values: Float[Tensor, "row column"] | None, n_rows: int, device: torch.device) -> StoredRows:
    out = StoredRows(n_rows, device)
    if values is not None:
        out[range(n_rows)] = values
    return out
