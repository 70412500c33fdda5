"""Graphs as other exporters write them on ONNX Runtime: the past goes in, past and present come out, nothing is shared.

Slower than ort.py's own graphs by design: every step copies the cache twice and computes logits for all its positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeqwen.backends.base import Chunk, Logits
from edgeqwen.backends.ort import OrtBackend, OrtSettings
from edgeqwen.errors import EngineError
from edgeqwen.types import ModelShape

STEP_TOKENS = 64  # each of them is a row of logits, wanted or not: 39 MB where the vocabulary has 151,936


class OrtPlainBackend(OrtBackend):
    """The engine of ort.py over inputs past_key_values.N.key and .value and outputs present.N.key and .value."""

    def __init__(self, path: Path, shape: ModelShape, settings: OrtSettings) -> None:
        """`path` is a graph that edgeqwen.onnx_file has checked, of a model of this shape."""
        super().__init__(path, shape, settings)
        self.step_tokens = min(settings.step_tokens, STEP_TOKENS)

    def _check_names(self, path: Path, layers: int) -> None:
        names = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]  # the slab's order
        self._past = [f"past_key_values.{name}" for name in names]
        self._outputs = ["logits", *(f"present.{name}" for name in names)]
        inputs = {node.name for node in self._session.get_inputs()}
        self._positions = "position_ids" in inputs
        wanted = {"input_ids", "attention_mask", *self._past}
        outputs = {node.name for node in self._session.get_outputs()}
        if inputs - {"position_ids"} != wanted or not outputs >= set(self._outputs):
            raise EngineError(
                f"{path}: its inputs are not input_ids, attention_mask and {layers} layers of past_key_values, or its "
                "outputs are not logits and present: export it as text-generation-with-past"
            )

    def _run(self, group: Sequence[Chunk], row: int, views: dict[int, Logits]) -> int:
        """Each chunk alone, a batch of one without padding; gives the next free row."""
        for chunk in group:
            logits = self._step(chunk)
            kept = logits[len(logits) - {"none": 0, "last": 1, "all": len(chunk.ids)}[chunk.rows] :]
            views[chunk.sequence] = self._logits[row : row + len(kept)]
            views[chunk.sequence][...] = kept
            row += len(kept)
        return row

    def _step(self, chunk: Chunk) -> Logits:
        """Logits of all positions of a chunk, [length, vocab_size]; its keys and values are in the slab then."""
        slab, held, width = self._check_open(), self.length(chunk.sequence), len(chunk.ids)
        feeds: dict[str, Any] = {
            "input_ids": np.array([chunk.ids], np.int64),
            "attention_mask": np.ones((1, held + width), np.int64),
        }
        if self._positions:
            feeds["position_ids"] = np.arange(held, held + width, dtype=np.int64)[None]
        caches = slab.array[:, :, chunk.sequence].reshape(-1, *slab.dims[3:])  # [2 * layers, kv_heads, slots, head_dim]
        for name, cache in zip(self._past, caches, strict=True):
            feeds[name] = np.ascontiguousarray(cache[None, :, :held])
        logits, *presents = self._native(lambda: self._session.run(self._outputs, feeds, self._run_options))
        self._check_shape("logits", logits, (1, width, self.vocab_size))
        for index, present in enumerate(presents):
            layer, which = divmod(index, 2)
            self._check_shape(self._outputs[1 + index], present, (1, slab.dims[3], held + width, slab.dims[5]))
            slab.array[layer, which, chunk.sequence, :, held : held + width] = present[0, :, held:]
        found: Logits = logits[0]
        return found

    def _check_shape(self, name: str, values: Any, wanted: tuple[int, ...]) -> None:
        if np.shape(values) != wanted:
            raise EngineError(f"the graph gives {name} of the shape {np.shape(values)}, not {wanted}")
