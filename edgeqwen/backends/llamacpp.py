"""llama.cpp behind the protocol, through llama-cpp-python's low-level API; knows ids and logits, no text."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeqwen.backends.base import Aside, Chunk, Ledger, Logits, Swap, check_chunks, check_load
from edgeqwen.backends.llamacpp_library import Log, load_llama
from edgeqwen.backends.second_engine import SecondEngine
from edgeqwen.backends.session_file import check_session, new_session
from edgeqwen.errors import EngineError, InterruptedForwardError, NoRoomError
from edgeqwen.memory_need import ASIDE_TOKENS, STEP_ROWS, SWAP_TOKENS
from edgeqwen.plan import Plan

ASIDE_PROMPTS = 4  # that take turns there, as far as its cache holds them
PASS_ON_TOKENS = 256
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # ggml.h: enum ggml_type


@dataclass(frozen=True, slots=True)
class LlamaCppSettings:
    """How a GGUF file is loaded; `edgeqwen.plan` chooses the values for a machine."""

    context_length: int
    threads: int
    sequences: int = 1
    pool_tokens: int | None = None  # KV cells over all sequences; None: context_length for each
    kv_type: str = "f16"
    gpu_layers: int = 0  # -1: all
    mmap: bool = True  # weights that are laid out anew for speed stand beside the mapped file: in memory twice
    repack: bool = True  # lay them out anew
    step_tokens: int = 512
    step_rows: int = STEP_ROWS  # bounds the logits buffer, which llama.cpp else reserves for every token of a step
    aside_threads: int = 0  # of the threads, for a second context that computes prompts beside running answers; 0: none
    aside_tokens: int = ASIDE_TOKENS
    swap_tokens: int = 0  # that may be kept outside of the pool


_log = Log()


class LlamaCppBackend:
    """One GGUF file in llama.cpp with one unified KV cache, in which `copy` is bookkeeping."""

    def __init__(
        self,
        path: Path,
        settings: LlamaCppSettings,
        progress: Callable[[float], None] | None = None,
        beside: LlamaCppBackend | None = None,
    ) -> None:
        """Load `path`, a file that edgeqwen.gguf has found sound; `progress` gets 0..1.

        `beside`: use the weights of this one, which has loaded the same file and is closed later.
        """
        if settings.kv_type not in KV_TYPES:
            raise EngineError(f"kv_type {settings.kv_type!r}: llama.cpp is offered {', '.join(KV_TYPES)}")
        self._llama = llama = load_llama()
        _log.attach(llama)
        _log.lines.clear()
        self._context: Any = None
        self._model: Any = None
        self.aside: Aside | None = None
        self.swap: Swap | None = LlamaCppSwap(self, settings.swap_tokens) if settings.swap_tokens else None
        self._borrowed = beside is not None
        self._model = self._weights(path, settings, progress) if beside is None else beside._model  # noqa: SLF001
        self._context = llama.llama_init_from_model(self._model, self._context_params(settings))
        if not self._context:
            self.close()
            raise EngineError(f"{path}: llama.cpp cannot make a context: {_log.last_words()}")
        self.vocab_size = int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model)))
        self.context_length = settings.context_length
        self.sequences = settings.sequences
        self.step_tokens = settings.step_tokens
        self.step_rows = settings.step_rows
        self.native_s = 0.0
        self._pool_tokens = settings.pool_tokens or settings.context_length * settings.sequences
        self._memory = llama.llama_get_memory(self._context)
        self._ledger = Ledger(settings.sequences)
        self._handed = np.empty(0, np.uint8)  # the last cells that `pass_on` gave
        self._batch = _Batch(llama, settings.step_tokens)
        if settings.aside_threads:
            try:
                self.aside = self._second(path, settings)
            except EngineError:
                self.close()
                raise

    @classmethod
    def open(cls, path: Path, plan: Plan, progress: Callable[[float], None] | None = None) -> LlamaCppBackend:
        """Load a file as it was planned."""
        settings = LlamaCppSettings(
            plan.context_length, plan.threads, sequences=plan.sequences, pool_tokens=plan.pool_tokens,
            kv_type=plan.kv_type, gpu_layers=plan.gpu_layers, mmap=plan.mmap, repack=plan.repack,
            aside_threads=plan.aside_threads, swap_tokens=plan.swap_tokens,
        )  # fmt: skip
        return cls(path, settings, progress)

    def _weights(self, path: Path, settings: LlamaCppSettings, progress: Callable[[float], None] | None = None) -> Any:
        loading = _Loading(progress)
        params = self._model_params(settings, loading)
        self._model = self._llama.llama_model_load_from_file(os.fsencode(path), params)
        if loading.error is not None:
            self.close()
            raise loading.error
        if not self._model:
            raise EngineError(f"{path}: llama.cpp cannot load it: {_log.last_words()}")
        return self._model

    def _second(self, path: Path, settings: LlamaCppSettings) -> SecondEngine[LlamaCppBackend]:
        side = replace(
            settings, threads=settings.aside_threads, sequences=ASIDE_PROMPTS, pool_tokens=settings.context_length,
            step_tokens=settings.aside_tokens, step_rows=ASIDE_PROMPTS + 1, aside_threads=0,
            swap_tokens=0,
        )  # fmt: skip
        second = LlamaCppBackend(path, side, beside=self)
        second.forward([Chunk(0, [0])])
        size = PASS_ON_TOKENS * self._llama.llama_state_seq_get_size(second._context, 0)
        second.truncate(0, 0)
        for one in (self, second):
            one._handed = np.full(size, 0, np.uint8)  # noqa: SLF001 - touched now: not in the midst of an answer
        return SecondEngine(self, second, threads=settings.threads, side_threads=settings.aside_threads)

    def _model_params(self, settings: LlamaCppSettings, loading: _Loading) -> Any:
        params = self._llama.llama_model_default_params()
        params.n_gpu_layers = settings.gpu_layers
        params.load_mode = self._llama.LLAMA_LOAD_MODE_MMAP if settings.mmap else self._llama.LLAMA_LOAD_MODE_NONE
        params.use_extra_bufts = settings.repack
        self._progress = self._llama.llama_progress_callback(loading)  # kept alive while it is used
        params.progress_callback = self._progress
        return params

    def _context_params(self, settings: LlamaCppSettings) -> Any:
        params = self._llama.llama_context_default_params()
        params.n_ctx = settings.pool_tokens or settings.context_length * settings.sequences
        params.n_batch = params.n_ubatch = settings.step_tokens
        # One more is where `_give` and `_receive` put what they hand over.
        params.n_seq_max = settings.sequences + (self._borrowed or settings.aside_threads + settings.swap_tokens > 0)
        params.n_outputs_max = max(settings.step_rows, params.n_seq_max)  # it reserves a row for each, and aborts
        params.n_threads = params.n_threads_batch = settings.threads
        params.type_k = params.type_v = KV_TYPES[settings.kv_type]
        # Flash attention on the CPU is off by up to 6e-3 in nano's logits, depending on the batch, even over a 32-bit
        # cache; without it that cache is exact to 5e-6. Who asks for 32 bits asks for that.
        exact = settings.kv_type == "f32"
        llama = self._llama
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED if exact else llama.LLAMA_FLASH_ATTN_TYPE_AUTO
        params.kv_unified = True
        params.no_perf = True
        # ggml asks this callback before every node, from its own threads. Python's would cost a GIL each time;
        # libc's strlen over two bytes answers 0 (go on) or 1 (stop) for nothing.
        self._stop_flag = (ctypes.c_ubyte * 2)()
        libc = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
        params.abort_callback = ctypes.cast(libc.strlen, self._llama.ggml_abort_callback)
        params.abort_callback_data = ctypes.cast(self._stop_flag, ctypes.c_void_p)
        return params

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        self._check_open()
        check_chunks(chunks, self)
        counts = self._batch.fill(chunks, self._ledger)
        lengths = [self.length(chunk.sequence) for chunk in chunks]
        try:
            address = self._decode(sum(counts))
            for chunk in chunks:
                self._ledger.append(chunk.sequence, chunk.ids)
        except BaseException:  # Ctrl-C, too, arrives behind the native call
            for chunk, length in zip(chunks, lengths, strict=True):
                self._cut(chunk.sequence, length)
            raise
        return self._views(address, counts)

    def _decode(self, rows: int) -> Any:
        """Compute the filled batch; the address of its logits if there are any."""
        _log.lines.clear()
        started = time.perf_counter()
        status = self._llama.llama_decode(self._context, self._batch.native)
        address = self._llama.llama_get_logits(self._context) if status == 0 and rows else None
        self.native_s += time.perf_counter() - started
        if status == 2:
            self.resume()
            raise InterruptedForwardError("the step was interrupted")
        if status == 1:
            raise NoRoomError(f"llama.cpp found no room in its KV cache of {self._pool_tokens} tokens")
        if status:
            raise EngineError(f"llama.cpp failed with status {status}: {_log.last_words()}")
        return address

    def _cut(self, sequence: int, length: int) -> None:
        self._llama.llama_memory_seq_rm(self._memory, sequence, length, -1)
        self._ledger.truncate(sequence, length)

    def _check_open(self) -> None:
        if not self._context:
            raise EngineError("the model is closed")

    def _views(self, address: Any, counts: Sequence[int]) -> list[Logits]:
        """One [rows, vocab_size] view a chunk over llama.cpp's buffer, in which rows stand in the batch's order."""
        if address is None:
            return [np.empty((0, self.vocab_size), np.float32) for _ in counts]
        flat = np.ctypeslib.as_array(address, (sum(counts), self.vocab_size))
        ends = np.cumsum(counts)
        return [flat[end - count : end] for count, end in zip(counts, ends, strict=True)]

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
        if source == target:
            self.truncate(source, length)
            return
        self._llama.llama_memory_seq_rm(self._memory, target, -1, -1)
        self._llama.llama_memory_seq_cp(self._memory, source, target, 0, length)
        self._ledger.copy(source, target, length)

    def pass_on(self, sequence: int, target: LlamaCppBackend, into: int, start: int, end: int) -> None:
        """Of second_engine.Twin; 3 ms for 256 tokens of Qwen3-0.6B."""
        for begin in range(start, end, PASS_ON_TOKENS):
            stop = min(end, begin + PASS_ON_TOKENS)
            target._receive(into, self._handed[: self._give(sequence, begin, stop)], begin, stop)
            target._ledger.append(into, self._ledger.ids[sequence][begin:stop])

    def _give(self, sequence: int, start: int, end: int, into: npt.NDArray[np.uint8] | None = None) -> int:
        """Write what the cells of these tokens hold to `into`, without it to `_handed`; how many bytes.

        Through a sequence of their own, for llama.cpp gives whole ones.
        """
        llama, spare = self._llama, self.sequences
        llama.llama_memory_seq_cp(self._memory, sequence, spare, start, end)
        size = int(llama.llama_state_seq_get_size(self._context, spare))
        if into is None:
            if self._handed.size < size:
                self._handed = np.empty(size, np.uint8)
            into = self._handed
        data = into.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = llama.llama_state_seq_get_data(self._context, data, into.size, spare)
        llama.llama_memory_seq_rm(self._memory, spare, -1, -1)
        if written != size:
            raise EngineError(f"llama.cpp gave {written} of {size} bytes of its cache: {_log.last_words()}")
        return size

    def _bytes_of(self, sequence: int, at: int) -> int:
        """At most so many for SWAP_TOKENS cells: what one takes, its header included, so many times."""
        llama, spare = self._llama, self.sequences
        llama.llama_memory_seq_cp(self._memory, sequence, spare, at, at + 1)
        size = int(llama.llama_state_seq_get_size(self._context, spare))
        llama.llama_memory_seq_rm(self._memory, spare, -1, -1)
        return SWAP_TOKENS * size

    def _receive(self, sequence: int, cells: npt.NDArray[np.uint8], start: int, end: int) -> None:
        llama, spare = self._llama, self.sequences
        if end - start > self.room():
            raise NoRoomError(f"the KV cache has room for {self.room()} tokens, not for {end - start}")
        data = cells.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        read = llama.llama_state_seq_set_data(self._context, data, cells.size, spare)
        if read == cells.size:
            llama.llama_memory_seq_cp(self._memory, spare, sequence, start, end)
        llama.llama_memory_seq_rm(self._memory, spare, -1, -1)
        if read != cells.size:
            raise NoRoomError(f"llama.cpp took {read} of {cells.size} bytes into its cache: {_log.last_words()}")

    def use_threads(self, count: int) -> None:
        """Of second_engine.Twin."""
        self._llama.llama_set_n_threads(self._context, count, count)

    def room(self) -> int:
        return self._pool_tokens - self._ledger.used

    def save(self, sequence: int, path: Path) -> None:
        self._check_open()
        ids = self._ledger.ids[sequence]
        what = os.fsencode(path), sequence, (ctypes.c_int32 * len(ids))(*ids), len(ids)
        with new_session(path):
            if not self._llama.llama_state_seq_save_file(self._context, *what):
                raise EngineError(f"{path}: llama.cpp could not write the session: {_log.last_words()}")

    def load(self, sequence: int, path: Path, ids: Sequence[int]) -> None:
        self._check_open()
        check_load(self, sequence, ids)
        check_session(path)
        name, tokens, count = os.fsencode(path), (ctypes.c_int32 * len(ids))(), ctypes.c_size_t(0)
        where = tokens, len(ids), ctypes.byref(count)
        read = self._llama.llama_state_seq_load_file(self._context, name, sequence, *where)
        if not read or count.value != len(ids) or list(tokens) != list(ids):
            self._llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            raise EngineError(f"{path}: is not a session of these {len(ids)} tokens for this model")
        self._ledger.append(sequence, ids)

    def interrupt(self) -> None:
        self._stop_flag[0] = 1

    def resume(self) -> None:
        self._stop_flag[0] = 0

    def close(self) -> None:
        if self.aside is not None:
            self.aside.close()
            self.aside = None
        if self._context:
            self._llama.llama_free(self._context)
        if self._model and not self._borrowed:
            self._llama.llama_model_free(self._model)
        self._context = self._model = None


class LlamaCppSwap:
    """edgeqwen.backends.base.Swap: 2 ms for 128 tokens of Qwen3-0.6B, either way; new memory takes 16 ms."""

    def __init__(self, backend: LlamaCppBackend, tokens: int) -> None:
        self._backend = backend
        self._free: list[npt.NDArray[np.uint8]] = []  # buffers for SWAP_TOKENS that were in use
        self.tokens = tokens

    def take_out(self, sequence: int, start: int, end: int) -> npt.NDArray[np.uint8]:
        self._backend._check_open()  # noqa: SLF001
        buffer = self._free.pop() if self._free else np.empty(self._backend._bytes_of(sequence, start), np.uint8)  # noqa: SLF001
        return buffer[: self._backend._give(sequence, start, end, buffer)]  # noqa: SLF001

    def put_back(self, sequence: int, cells: npt.NDArray[np.uint8], ids: Sequence[int]) -> None:
        backend = self._backend
        backend._check_open()  # noqa: SLF001
        start = backend.length(sequence)
        backend._receive(sequence, cells, start, start + len(ids))  # noqa: SLF001
        backend._ledger.append(sequence, ids)  # noqa: SLF001

    def recycle(self, cells: npt.NDArray[np.uint8]) -> None:
        if cells.base is not None:
            self._free.append(cells.base)


class _Loading:
    """llama.cpp's progress callback: false stops the loading, which is how Ctrl-C gets through native code."""

    def __init__(self, progress: Callable[[float], None] | None) -> None:
        self._progress = progress
        self.error: BaseException | None = None

    def __call__(self, done: float, _user_data: object) -> bool:
        try:
            if self._progress is not None:
                self._progress(done)
        except BaseException as error:  # noqa: BLE001 - an exception cannot cross C; it is raised behind it
            self.error = error
        return self.error is None


class _Batch:
    """A llama_batch over numpy arrays, filled in bulk."""

    def __init__(self, llama: Any, tokens: int) -> None:
        self._ids = np.empty(tokens, np.int32)
        self._positions = np.empty(tokens, np.int32)
        self._sequences = np.empty(tokens, np.int32)
        self._wanted = np.empty(tokens, np.int8)
        self._ones = np.ones(tokens, np.int32)
        # llama_batch.seq_id is an array of pointers, one to each token's list of sequences (here of one each).
        self._pointers = (self._sequences.ctypes.data + 4 * np.arange(tokens)).astype(np.uintp)
        self.native = llama.llama_batch()
        self.native.embd = None
        for name, array in (
            ("token", self._ids), ("pos", self._positions), ("n_seq_id", self._ones),
            ("seq_id", self._pointers), ("logits", self._wanted),
        ):  # fmt: skip
            field = dict(self.native._fields_)[name]
            setattr(self.native, name, ctypes.cast(array.ctypes.data, field))

    def fill(self, chunks: Sequence[Chunk], ledger: Ledger) -> list[int]:
        """Put the chunks behind their sequences; how many rows of logits each asks for."""
        start, counts = 0, []
        for chunk in chunks:
            held, count = len(ledger.ids[chunk.sequence]), len(chunk.ids)
            end = start + count
            self._ids[start:end] = chunk.ids
            self._positions[start:end] = np.arange(held, held + count)
            self._sequences[start:end] = chunk.sequence
            self._wanted[start:end] = chunk.rows == "all"
            if chunk.rows == "last":
                self._wanted[end - 1] = 1
            counts.append({"none": 0, "last": 1, "all": count}[chunk.rows])
            start = end
        self.native.n_tokens = start
        return counts
