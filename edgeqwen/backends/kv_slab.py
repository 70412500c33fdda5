"""One reserved piece of memory for the KV caches of all layers and sequences; it knows shapes and no engine.

It is anonymous memory without huge pages: what was never written costs nothing, so the whole context is reserved.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeqwen.backends.session_file import check_session, new_session
from edgeqwen.errors import EngineError

_MAGIC = b"edgeqwen kv 2\n"  # 1 held keys that were not scaled
_HEADER_BYTES = 4096 - len(_MAGIC)  # padded: the values begin at a page


class KvSlab:
    """float32 [layers, key and value, sequences, kv_heads, slots, head_dim]."""

    def __init__(self, layers: int, sequences: int, kv_heads: int, slots: int, head_dim: int) -> None:
        self.dims = (layers, 2, sequences, kv_heads, slots, head_dim)
        nbytes = int(np.prod(self.dims)) * 4
        flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        try:
            self._map = mmap.mmap(-1, nbytes, **flags)
        except (OSError, ValueError) as error:
            raise EngineError(f"{nbytes >> 20} MiB cannot be reserved for the KV cache: {error}") from None
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self.array = np.frombuffer(self._map, np.float32).reshape(self.dims)

    def address(self, layer: int, which: int, sequence: int) -> int:
        """Where the keys (0) or values (1) of a layer begin, from a sequence on."""
        return int(self.array[layer, which, sequence].ctypes.data)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a sequence."""
        self.array[:, :, target, :, :length] = self.array[:, :, source, :, :length]

    def save(self, sequence: int, ids: Sequence[int], path: Path) -> None:
        """Write the tokens of a sequence to a new file."""
        header = json.dumps(self._header(ids)).encode().ljust(_HEADER_BYTES)
        with new_session(path), path.open("wb") as file:
            file.write(_MAGIC + header)
            for part in self.array[:, :, sequence].reshape(-1, *self.dims[3:]):
                file.write(np.ascontiguousarray(part[:, : len(ids)]).data)

    def load(self, sequence: int, ids: Sequence[int], path: Path) -> None:
        """Read what `save` wrote of exactly these ids; EngineError for anything else, the slab unchanged."""
        head = len(_MAGIC) + _HEADER_BYTES
        layers, which, _, heads, _, width = self.dims
        size = check_session(path)
        try:
            raw = np.memmap(path, np.uint8, "r")[:size]
            header = json.loads(raw[len(_MAGIC) : head].tobytes())
        except (OSError, ValueError, RecursionError) as error:
            raise EngineError(f"{path}: is no session: {error}") from None
        dims = (layers, which, heads, len(ids), width)
        good = raw[: len(_MAGIC)].tobytes() == _MAGIC and header == self._header(ids)
        if not good or size != head + int(np.prod(dims)) * 4:
            raise EngineError(f"{path}: is not a session of these {len(ids)} tokens for this model")
        values = np.memmap(path, np.float32, "r", head, dims)
        self.array[:, :, sequence, :, : len(ids)] = values

    def _header(self, ids: Sequence[int]) -> dict[str, object]:
        layers, which, _, heads, _, width = self.dims
        digest = hashlib.sha256(np.array(ids, np.int64).tobytes()).hexdigest()
        return {"dims": [layers, which, heads, len(ids), width], "ids": digest}
