"""ONNX Runtime on the CPU: IO binding over a KV slab that is never copied; it knows no text."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeqwen.artifact import open_artifact
from edgeqwen.backends.base import Aside, Chunk, Ledger, Logits, Swap, check_chunks, check_load
from edgeqwen.backends.kv_slab import KvSlab
from edgeqwen.errors import ArtifactError, EngineError, InterruptedForwardError
from edgeqwen.huge_pages import on_huge_pages
from edgeqwen.memory_need import STEP_TOKENS, keeps_scores, onnx_step_tokens
from edgeqwen.onnx_file import LENGTH_INPUTS, check_onnx
from edgeqwen.onnx_runtime import import_onnxruntime
from edgeqwen.plan import Plan
from edgeqwen.types import ModelShape

STEP_ROWS = 64
_NO_FLASH = "ORT_GQA_DISABLE_FLASH_ATTENTION"
_setting, _loads = threading.Lock(), set[object]()  # of those that set it: the last one takes it away


@dataclass(frozen=True, slots=True)
class OrtSettings:
    """How a graph is run. `spin`: waiting threads burn their cores between two operators, which is faster."""

    context_length: int
    threads: int
    sequences: int = 1
    pool_tokens: int | None = None  # of all sequences together; None: as many as they can hold
    step_tokens: int = STEP_TOKENS
    step_rows: int = STEP_ROWS
    spin: bool = True


class OrtBackend:
    """The protocol of base.py over one InferenceSession."""

    def __init__(self, path: Path, shape: ModelShape, settings: OrtSettings) -> None:
        """`path` is a graph that edgeqwen.onnx_file has checked, of a model of this shape."""
        self._ort = import_onnxruntime()
        self._session = _open(self._ort, path, settings)
        self._check_names(path, shape.num_hidden_layers)
        self.vocab_size = shape.vocab_size
        self.context_length = settings.context_length
        self.sequences = settings.sequences
        self.step_tokens, self.step_rows = settings.step_tokens, settings.step_rows
        self.native_s = 0.0
        self.aside: Aside | None = None
        self.swap: Swap | None = None
        self._pool_tokens = settings.pool_tokens or settings.context_length * settings.sequences
        self._ledger = Ledger(settings.sequences)
        self._layers = shape.num_hidden_layers
        self._slab: KvSlab | None = KvSlab(
            shape.num_hidden_layers, settings.sequences, shape.num_key_value_heads, settings.context_length,
            shape.head_dim,
        )  # fmt: skip
        self._logits = np.empty((settings.step_rows, shape.vocab_size), np.float32)
        self._run_options = self._ort.RunOptions()
        self._bindings: dict[tuple[int, int], _Binding] = {}

    def _check_names(self, path: Path, layers: int) -> None:
        """EngineError where the graph takes or gives something else than what is bound."""
        caches = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
        wanted = {"input_ids", "logit_rows", *LENGTH_INPUTS, *(f"past_key_values.{name}" for name in caches)}
        given = {"logits", *(f"present.{name}" for name in caches)}
        odd = wanted ^ {node.name for node in self._session.get_inputs()}
        odd |= given - {node.name for node in self._session.get_outputs()}
        if odd:
            raise EngineError(
                f"{path}: {', '.join(sorted(odd)[:4])}: an input or output of the graph is missing, or too many; "
                "convert the model again"
            )

    @classmethod
    def open(cls, path: Path, plan: Plan, progress: Callable[[float], None] | None = None) -> OrtBackend:
        """Check and load the graph of an artifact as it was planned."""
        artifact = open_artifact(path.parent)
        files = artifact.manifest.files
        checked = check_onnx(path, {name: payload.size for name, payload in files.items()})
        if checked.sha256 != files[path.name].sha256:
            raise ArtifactError(
                f"{path} has the sha256 {checked.sha256}; the manifest says {files[path.name].sha256}: "
                "the graph was changed, convert the model again"
            )
        settings = OrtSettings(
            plan.context_length, plan.threads, sequences=plan.sequences, pool_tokens=plan.pool_tokens,
            step_tokens=onnx_step_tokens(artifact.manifest.shape, plan.context_length, platform.machine()),
        )  # fmt: skip
        kind: type[OrtBackend] = cls
        if "seqlens_k" not in checked.inputs:  # another exporter's graph
            from edgeqwen.backends.ort_plain import OrtPlainBackend  # noqa: PLC0415 - it builds on this file

            kind = OrtPlainBackend
        backend = kind(checked.path, artifact.manifest.shape, settings)
        if progress is not None:
            progress(1.0)
        return backend

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        self._check_open()
        check_chunks(chunks, self)
        views: dict[int, Logits] = {}
        lengths = {chunk.sequence: self.length(chunk.sequence) for chunk in chunks}
        try:
            row = 0
            for group in _groups(chunks):
                row = self._run(group, row, views)
            for chunk in chunks:
                self._ledger.append(chunk.sequence, chunk.ids)
        except BaseException:  # Ctrl-C, too: what was written behind the lengths is forgotten
            for sequence, length in lengths.items():
                self._ledger.truncate(sequence, length)
            raise
        return [views[chunk.sequence] for chunk in chunks]

    def _run(self, group: Sequence[Chunk], row: int, views: dict[int, Logits]) -> int:
        """One native call for chunks of equal length over neighbouring sequences; gives the next free row."""
        binding = self._binding(group[0].sequence, len(group))
        binding.fill(group, [self.length(chunk.sequence) for chunk in group])
        rows = binding.rows
        out = self._logits[row : row + rows]
        binding.bind_logits(out)
        self._native(lambda: self._session.run_with_iobinding(binding.native, self._run_options))
        at = row
        for chunk, count in zip(group, binding.counts, strict=True):
            views[chunk.sequence] = self._logits[at : at + count]
            at += count
        return at

    def _native(self, call: Callable[[], Any]) -> Any:
        """Run and time native code; its exceptions become ours."""
        started = time.perf_counter()
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - its exceptions have no root of their own
            if self._run_options.terminate:
                self.resume()
                raise InterruptedForwardError("the step was interrupted") from None
            raise EngineError(f"ONNX Runtime failed: {error}") from None
        finally:
            self.native_s += time.perf_counter() - started

    def _binding(self, first: int, count: int) -> _Binding:
        """The binding of so many sequences from `first` on; KV buffers are bound once."""
        key = (first, count)
        if key not in self._bindings:
            self._bindings[key] = _Binding(self._session, self._check_open(), first, count)
        return self._bindings[key]

    def length(self, sequence: int) -> int:
        return len(self._ledger.ids[sequence])

    def ids(self, sequence: int) -> Sequence[int]:
        return self._ledger.ids[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        self._check_open()
        self._ledger.truncate(sequence, length)

    def copy(self, source: int, target: int, length: int) -> None:
        self._check_open().copy(source, target, length)
        self._ledger.copy(source, target, length)

    def room(self) -> int:
        return self._pool_tokens - self._ledger.used

    def save(self, sequence: int, path: Path) -> None:
        self._check_open().save(sequence, self._ledger.ids[sequence], path)

    def load(self, sequence: int, path: Path, ids: Sequence[int]) -> None:
        slab = self._check_open()
        check_load(self, sequence, ids)
        slab.load(sequence, ids, path)
        self._ledger.append(sequence, ids)

    def interrupt(self) -> None:
        self._run_options.terminate = True

    def resume(self) -> None:
        self._run_options.terminate = False

    def close(self) -> None:
        self._bindings.clear()
        self._slab = self._session = None

    def _check_open(self) -> KvSlab:
        if self._slab is None:
            raise EngineError("the model is closed")
        return self._slab


def _groups(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Runs of one-token chunks over neighbouring sequences go together; each longer chunk goes alone.

    GroupQueryAttention refuses a batch of more than one row with a past and more than one new token.
    """
    groups: list[list[Chunk]] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.sequence):
        last = groups[-1][-1] if groups else None
        together = last is not None and len(last.ids) == 1 == len(chunk.ids) and last.sequence + 1 == chunk.sequence
        if together:
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return groups


class _Binding:
    """The inputs and outputs of one native call over `count` sequences of the slab from `first` on."""

    def __init__(self, session: Any, slab: KvSlab, first: int, count: int) -> None:
        self.native = session.io_binding()
        self.rows = 0
        self.counts: list[int] = []
        self._kept: dict[str, Any] = {}  # what native code reads: alive as long as it may
        dims = [count, *slab.dims[3:]]
        for layer in range(slab.dims[0]):
            for which, kind in enumerate(("key", "value")):
                address = slab.address(layer, which, first)
                past, present = f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}"
                self.native.bind_input(past, "cpu", 0, np.float32, dims, address)
                self.native.bind_output(present, "cpu", 0, np.float32, dims, address)

    def fill(self, chunks: Sequence[Chunk], lengths: Sequence[int]) -> None:
        """Put the ids behind what the sequences hold, and ask for the rows that are wanted."""
        width = len(chunks[0].ids)
        totals = [length + width for length in lengths]
        wanted: list[int] = []
        self.counts = []
        for index, chunk in enumerate(chunks):
            end = (index + 1) * width
            rows = {"none": [], "last": [end - 1], "all": list(range(end - width, end))}[chunk.rows]
            wanted += rows
            self.counts.append(len(rows))
        self.rows = len(wanted)
        self._bind("input_ids", np.array([chunk.ids for chunk in chunks], np.int64))
        self._bind("seqlens_k", np.array(totals, np.int32) - np.int32(1))
        self._bind("total_sequence_length", np.array(max(totals), np.int32))
        self._bind("logit_rows", np.array(wanted, np.int64))

    def bind_logits(self, out: Logits) -> None:
        """Let the logits be written to `out`, [rows, vocab_size]."""
        self.native.bind_output("logits", "cpu", 0, np.float32, list(out.shape), out.ctypes.data)

    def _bind(self, name: str, values: np.ndarray) -> None:
        """Bind a small input; where the shape is the last one's, its memory is written anew and stays bound."""
        kept = self._kept.get(name)
        if kept is not None and kept.shape == values.shape:
            kept[...] = values
            return
        self._kept[name] = values
        self.native.bind_input(name, "cpu", 0, values.dtype, list(values.shape), values.ctypes.data)


@contextmanager
def _attention_by_products() -> Iterator[None]:
    """On x86, let what is loaded in the `with` statement compute attention by matrix products, unless the user chose.

    ONNX Runtime's loop over the keys of one new token is compiled for SSE alone; its products use AVX2 or AVX-512, and
    prompts take as long with either. It reads the variable when it makes an operator; a program that is started by
    another thread meanwhile inherits it, which changes how its own ONNX Runtime computes and not what.
    """
    with _setting:
        load = object()
        if keeps_scores(platform.machine()) and (_loads or _NO_FLASH not in os.environ):
            os.environ[_NO_FLASH] = "1"
            _loads.add(load)
    try:
        yield
    finally:
        with _setting:
            if _loads == {load}:
                os.environ.pop(_NO_FLASH, None)
            _loads.discard(load)


def _open(ort: Any, path: Path, settings: OrtSettings) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = settings.threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # shapes differ from call to call
    options.log_severity_level = 4  # what fails is raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spin else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # a model that waits burns nothing
    try:
        with on_huge_pages(), _attention_by_products():
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001
        raise EngineError(f"{path}: ONNX Runtime cannot load it: {error}") from None
