"""The oracle: the original checkpoint through transformers on the CPU in float32; slow, and it knows no text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqwen.backends.base import Aside, Chunk, Ledger, Logits, Swap, check_chunks, check_load
from edgeqwen.backends.session_file import check_session, new_session
from edgeqwen.errors import EngineError, InterruptedForwardError
from edgeqwen.plan import Plan
from edgeqwen.reference_checkpoint import import_torch, open_reference_checkpoint

STEP_TOKENS, STEP_ROWS = 512, 64


@dataclass(frozen=True, slots=True)
class ReferenceSettings:
    """How the checkpoint is run; `threads` are torch's, which the whole process shares."""

    context_length: int
    threads: int
    sequences: int = 1
    pool_tokens: int | None = None  # of all sequences together; None: as many as they can hold
    step_tokens: int = STEP_TOKENS
    step_rows: int = STEP_ROWS


class ReferenceBackend:
    """The protocol of base.py over a transformers module, one DynamicCache a sequence."""

    def __init__(self, path: Path, settings: ReferenceSettings) -> None:
        """`path` is a folder with config.json and safetensors."""
        self._torch, self._transformers = import_torch()
        self._torch.set_num_threads(settings.threads)
        self._model = open_reference_checkpoint(path)
        self.vocab_size = int(self._model.config.vocab_size)
        self.context_length = settings.context_length
        self.sequences = settings.sequences
        self.step_tokens, self.step_rows = settings.step_tokens, settings.step_rows
        self.native_s = 0.0
        self.aside: Aside | None = None
        self.swap: Swap | None = None
        self._pool_tokens = settings.pool_tokens or settings.context_length * settings.sequences
        self._ledger = Ledger(settings.sequences)
        self._caches = [self._new_cache() for _ in range(settings.sequences)]
        self._stop = False
        for part in self._model.modules():
            if isinstance(part, self._torch.nn.ModuleList):  # the layers
                for layer in part:
                    layer.register_forward_pre_hook(self._check_stop)

    @classmethod
    def open(cls, path: Path, plan: Plan, progress: Callable[[float], None] | None = None) -> ReferenceBackend:
        """Load a checkpoint as it was planned."""
        settings = ReferenceSettings(
            plan.context_length, plan.threads, sequences=plan.sequences, pool_tokens=plan.pool_tokens
        )
        backend = cls(path, settings)
        if progress is not None:
            progress(1.0)
        return backend

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        self._check_open()
        check_chunks(chunks, self)
        lengths = [self.length(chunk.sequence) for chunk in chunks]
        started = time.perf_counter()
        try:
            rows = [self._run(chunk) for chunk in chunks]
            for chunk in chunks:
                self._ledger.append(chunk.sequence, chunk.ids)
        except BaseException as error:  # Ctrl-C, too: what was computed behind the lengths is forgotten
            for chunk, length in zip(chunks, lengths, strict=True):
                self._cut(chunk.sequence, length)
            if isinstance(error, RuntimeError):  # torch's, for whatever went wrong
                raise EngineError(f"torch failed: {error}") from None
            raise
        finally:
            self.native_s += time.perf_counter() - started
        return rows

    def _run(self, chunk: Chunk) -> Logits:
        """One sequence alone: a batch of one needs no padding and no mask but the causal one."""
        wanted = {"none": 0, "last": 1, "all": len(chunk.ids)}[chunk.rows]
        torch = self._torch
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor([list(chunk.ids)]),
                past_key_values=self._caches[chunk.sequence],
                use_cache=True,
                logits_to_keep=max(1, wanted),
            ).logits[0]  # the model's own head: some families scale or cap what it gives
        logits = logits[len(logits) - wanted :]
        values: Logits = logits.numpy()  # [wanted, vocab_size]
        return values

    def _check_stop(self, *_: object) -> None:
        """Run before every layer."""
        if self._stop:
            self.resume()
            raise InterruptedForwardError("the step was interrupted")

    def _new_cache(self) -> Any:
        return self._transformers.DynamicCache()

    def _cut(self, sequence: int, length: int) -> None:
        if length:
            self._caches[sequence].crop(length)
        else:
            self._caches[sequence] = self._new_cache()
        self._ledger.truncate(sequence, length)

    def _check_open(self) -> None:
        if self._model is None:
            raise EngineError("the model is closed")

    def length(self, sequence: int) -> int:
        return len(self._ledger.ids[sequence])

    def ids(self, sequence: int) -> Sequence[int]:
        return self._ledger.ids[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        self._check_open()
        if length < self.length(sequence):
            self._cut(sequence, length)

    def copy(self, source: int, target: int, length: int) -> None:
        self._check_open()
        self._fill(target, self._keys_and_values(source, length) if length else {})
        self._ledger.copy(source, target, length)

    def _keys_and_values(self, sequence: int, length: int) -> dict[str, Any]:
        """Copies of a sequence's first tokens, by `LAYER.key` and `LAYER.value`: [1, kv_heads, length, head_dim]."""
        tensors: dict[str, Any] = {}
        for number, (key, value) in enumerate(self._caches[sequence].to_legacy_cache()):
            tensors[f"{number}.key"] = key[:, :, :length].clone(memory_format=self._torch.contiguous_format)
            tensors[f"{number}.value"] = value[:, :, :length].clone(memory_format=self._torch.contiguous_format)
        return tensors

    def _fill(self, sequence: int, tensors: dict[str, Any]) -> None:
        cache = self._new_cache()
        for number in range(len(tensors) // 2):
            cache.update(tensors[f"{number}.key"], tensors[f"{number}.value"], number)
        self._caches[sequence] = cache

    def room(self) -> int:
        return self._pool_tokens - self._ledger.used

    def save(self, sequence: int, path: Path) -> None:
        from safetensors.torch import save  # noqa: PLC0415 - comes with transformers

        self._check_open()
        ids = self._ledger.ids[sequence]
        tensors = self._keys_and_values(sequence, len(ids)) | {"ids": self._torch.tensor(ids, dtype=self._torch.int64)}
        with new_session(path):
            path.write_bytes(save(tensors))

    def load(self, sequence: int, path: Path, ids: Sequence[int]) -> None:
        from safetensors import SafetensorError  # noqa: PLC0415
        from safetensors.torch import load  # noqa: PLC0415

        self._check_open()
        check_load(self, sequence, ids)
        size = check_session(path)
        try:
            tensors = load(path.read_bytes()[:size])
        except (OSError, SafetensorError) as error:
            raise EngineError(f"{path}: is no session: {error}") from None
        written = tensors.pop("ids", None)
        if written is None or written.tolist() != list(ids) or not self._fits(tensors, len(ids)):
            raise EngineError(f"{path}: is not a session of these {len(ids)} tokens for this model")
        self._fill(sequence, tensors)
        self._ledger.append(sequence, ids)

    def _fits(self, tensors: dict[str, Any], length: int) -> bool:
        config = self._model.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        names = {f"{number}.{kind}" for number in range(config.num_hidden_layers) for kind in ("key", "value")}
        dims = (1, config.num_key_value_heads, length, width)
        return tensors.keys() == names and all(tuple(tensor.shape) == dims for tensor in tensors.values())

    def interrupt(self) -> None:
        self._stop = True

    def resume(self) -> None:
        self._stop = False

    def close(self) -> None:
        self._model = None
        self._caches = []
