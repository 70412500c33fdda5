"""A Hugging Face checkpoint, opened lazily and read strictly: facts at once, weights by rows; it knows no output."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from converters.architectures import EMBEDDING, HEAD, expected_tensors, is_harmless
from converters.model_card import read_card
from converters.model_config import check_defaults, read_shape
from converters.safetensors import NUMPY_DTYPE, TensorInfo, read_tensors, shard_names
from converters.source_file import SourceFile, read_file
from converters.tokenizer_files import TOKENIZER, read_tokenizer
from edgeqwen.errors import CheckpointError
from edgeqwen.strict_json import CONFIG_BYTES_MAX, parse_object, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

    from converters.tokenizer_files import TokenizerFiles
    from edgeqwen.types import ModelShape

    # tensors, shape, their files, the folder -> the name of a duplicate to drop
    _Check = Callable[[Mapping[str, TensorInfo], ModelShape, Mapping[Path, SourceFile], Path], str | None]

__all__ = ["Checkpoint", "TensorInfo", "find_nonfinite", "open_checkpoint"]

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_COMPARE_BYTES = 8 << 20
_SCAN_VALUES = 32_768  # 64 kB of BF16: the scratch stays in the first caches

# dtype of rows -> dtype of its bits, the exponent's bits: all set in infinity and NaN, in nothing else
_EXPONENT: Final[dict[np.dtype[Any], tuple[np.dtype[Any], int]]] = {
    NUMPY_DTYPE["BF16"]: (np.dtype("<u2"), 0x7F80),
    NUMPY_DTYPE["F16"]: (np.dtype("<u2"), 0x7C00),
    NUMPY_DTYPE["F32"]: (np.dtype("<u4"), 0x7F80_0000),
}


@dataclass(slots=True, eq=False, repr=False)
class Checkpoint:
    """An open checkpoint; use it in a `with` statement. Views that `rows` gave stay valid after it."""

    path: Path  # the folder, links resolved
    name: str
    config: Mapping[str, Any]  # config.json
    shape: ModelShape
    generation_config: Mapping[str, Any]  # {} when absent
    tokenizer: TokenizerFiles
    card: Mapping[str, str | tuple[str, ...]]  # licence, base model and the like, from README.md; {} when absent
    # Exactly what expected_tensors(shape) names; sorted by name within each file, as convert_hf_to_gguf does.
    tensors: Mapping[str, TensorInfo]
    tied_duplicate: str | None  # "lm_head.weight" when it was stored though tied, bit for bit; then not in `tensors`
    _sources: Mapping[Path, SourceFile]

    @property
    def tokenizer_json(self) -> bytes:
        return self.tokenizer.json

    @property
    def tokenizer_config(self) -> Mapping[str, Any]:
        return self.tokenizer.config

    @property
    def chat_template(self) -> str | None:
        return self.tokenizer.chat_template

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to `stop` of a tensor as a read-only view of the file: [stop - start, n_in], or [n].

        uint16 holds the bits of BF16; else float16 or float32. CheckpointError when the file has become shorter,
        IndexError for rows that are not there, ValueError after `close`.
        """
        tensor = self.tensors[name]
        if not 0 <= start <= stop <= tensor.shape[0]:
            raise IndexError(f"rows {start} to {stop} of {name}, which has {tensor.shape[0]}")
        return _rows(self._sources[tensor.path], tensor, start, stop)

    def check_unchanged(self) -> None:
        """Raise a CheckpointError when a file of weights is no longer the one that was opened."""
        for source in self._sources.values():
            source.check_unchanged()

    def close(self) -> None:
        """Close the files. May be called twice."""
        for source in self._sources.values():
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None:
            self.check_unchanged()


def open_checkpoint(path: Path, *, name: str | None = None) -> Checkpoint:
    """Open the checkpoint in the folder `path`; read its headers and JSON files, no weights but a tied head's.

    `name` defaults to the folder's, or the hub id's last part for a folder of the hub cache. CheckpointError for
    anything that is damaged, hostile or not supported. Weights may still be NaN: only `find_nonfinite` looks at them.
    """
    folder = _folder(path)
    config = _read_object(folder, CONFIG)
    return _open(folder, config, read_shape(config, str(folder / CONFIG)), name, _check_tensors)


def open_foreign(path: Path, shape: ModelShape, *, name: str | None = None) -> Checkpoint:
    """Open a checkpoint of a family that is none of ours: `shape` is known, and its tensors' names are not checked."""
    folder = _folder(path)
    return _open(folder, _read_object(folder, CONFIG), shape, name, lambda *_: None)


def _open(folder: Path, config: Mapping[str, Any], shape: ModelShape, name: str | None, check: _Check) -> Checkpoint:
    generation_config = _read_object(folder, GENERATION_CONFIG) if (folder / GENERATION_CONFIG).exists() else {}
    for data, file in ((config, CONFIG), (generation_config, GENERATION_CONFIG)):
        check_defaults(data, shape.vocab_size, str(folder / file))
    tokenizer = read_tokenizer(folder)
    if tokenizer.size > shape.vocab_size:
        raise CheckpointError(
            f"{folder / TOKENIZER}: has ids up to {tokenizer.size - 1}, the embedding rows 0 to {shape.vocab_size - 1}"
        )
    card = read_card(folder)
    with ExitStack() as opened:
        sources, tensors = _open_shards(folder, opened)
        duplicate = check(tensors, shape, sources, folder)
        opened.pop_all()
    return Checkpoint(
        path=folder,
        name=name or _name(folder),
        config=config,
        shape=shape,
        generation_config=generation_config,
        tokenizer=tokenizer,
        card=card,
        tensors={key: tensor for key, tensor in tensors.items() if key != duplicate and not is_harmless(key)},
        tied_duplicate=duplicate,
        _sources=sources,
    )


def find_nonfinite(rows: np.ndarray) -> int | None:
    """Return the flat index of the first NaN or infinity in BF16 bits (uint16), float16 or float32; None without."""
    bits, mask = _EXPONENT[rows.dtype]
    flat = rows.reshape(-1).view(bits)
    scratch = np.empty(min(flat.size, _SCAN_VALUES), bits)
    for start in range(0, flat.size, _SCAN_VALUES):
        part = flat[start : start + _SCAN_VALUES]
        exponents = np.bitwise_and(part, mask, out=scratch[: part.size])
        if exponents.max() == mask:
            return start + int(exponents.argmax())
    return None


def _folder(path: Path) -> Path:
    """Return the real folder, or say what was given instead and what would work."""
    if not path.exists():
        if path.suffix == ".gguf":
            raise CheckpointError(f"{path}: no such file")
        raise CheckpointError(
            f"{path}: no such folder; give a checkpoint's folder, a hub id such as Qwen/Qwen3-0.6B, or nano"
        )
    if not path.is_dir():
        kind = "a GGUF file, converted already" if path.suffix == ".gguf" else "a file"
        raise CheckpointError(f"{path}: is {kind}; expected the folder with {CONFIG}, {TOKENIZER} and *.safetensors")
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise CheckpointError(
            f"{path}: {shown(pickles)} can run code when opened; re-save as safetensors where you trust it: "
            "AutoModelForCausalLM.from_pretrained(SOURCE).save_pretrained(TARGET, safe_serialization=True)"
        )
    if "adapter_config.json" in names:
        raise CheckpointError(f"{path}: is a LoRA adapter; merge it into its base model first (merge_and_unload)")
    if CONFIG not in names:
        raise CheckpointError(f"{path}: {CONFIG} is missing; found {shown(names)}")
    return path.resolve()


def _name(folder: Path) -> str:
    """`models--Qwen--Qwen3-0.6B/snapshots/REVISION` is Qwen3-0.6B."""
    model = folder.parent.parent.name
    return model.rpartition("--")[2] if folder.parent.name == "snapshots" and "--" in model else folder.name


def _read_object(folder: Path, name: str) -> dict[str, Any]:
    return parse_object(read_file(folder, name, CONFIG_BYTES_MAX), str(folder / name), CheckpointError)


def _open_shards(folder: Path, opened: ExitStack) -> tuple[dict[Path, SourceFile], dict[str, TensorInfo]]:
    """Open every file of weights; each is closed by `opened`."""
    files, weight_map = shard_names(folder)
    sources: dict[Path, SourceFile] = {}
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        source = SourceFile(folder, file)
        opened.callback(source.close)
        sources[source.path] = source
        for tensor in read_tensors(source):
            if tensor.name in tensors:
                raise CheckpointError(
                    f"{source.path}: {shown(tensor.name)} is also in {tensors[tensor.name].path.name}"
                )
            tensors[tensor.name] = tensor
    if weight_map:
        found = {name: tensor.path.name for name, tensor in tensors.items()}
        differ = sorted(name for name in found.keys() | weight_map if found.get(name) != weight_map.get(name))
        if differ:
            raise CheckpointError(
                f"{folder}: the index and the files disagree on {len(differ)} tensors; the first, {shown(differ[0])}: "
                f"index {shown(weight_map.get(differ[0]))}, files {shown(found.get(differ[0]))}"
            )
    return sources, tensors


def _check_tensors(
    tensors: Mapping[str, TensorInfo], shape: ModelShape, sources: Mapping[Path, SourceFile], folder: Path
) -> str | None:
    """Check that nothing is missing, unused or of another shape; return the name of a duplicate to drop."""
    expected = {name: dims for name, (_, dims) in expected_tensors(shape).items()}
    duplicate = HEAD if shape.tie_word_embeddings and HEAD in tensors else None
    if duplicate:
        expected[HEAD] = expected[EMBEDDING]
    _check_none(expected.keys() - tensors.keys(), "missing", folder)
    _check_none((name for name in tensors.keys() - expected.keys() if not is_harmless(name)), "not known", folder)
    for name, dims in expected.items():
        if tensors[name].shape != dims:
            raise CheckpointError(
                f"{tensors[name].path}: {name} has the shape {list(tensors[name].shape)}; "
                f"{CONFIG} asks for {list(dims)}"
            )
    if duplicate:
        _check_tied(tensors[EMBEDDING], tensors[HEAD], sources)
    return duplicate


def _check_none(names: Iterable[str], fault: str, folder: Path) -> None:
    if names := sorted(names):
        raise CheckpointError(f"{folder}: {len(names)} tensors are {fault} for {CONFIG}; the first: {shown(names[:3])}")


def _check_tied(embedding: TensorInfo, head: TensorInfo, sources: Mapping[Path, SourceFile]) -> None:
    step = max(1, _COMPARE_BYTES * embedding.shape[0] // embedding.nbytes)
    for start in range(0, embedding.shape[0], step):
        stop = min(start + step, embedding.shape[0])
        one, other = (_rows(sources[tensor.path], tensor, start, stop) for tensor in (embedding, head))
        if one.dtype != other.dtype or not np.array_equal(one.view(np.uint8), other.view(np.uint8)):
            raise CheckpointError(
                f"{head.path}: tie_word_embeddings is true, but {HEAD} ({head.dtype}) differs from {EMBEDDING} "
                f"({embedding.dtype}) in rows {start} to {stop - 1}; set tie_word_embeddings to false in {CONFIG} "
                "to keep both"
            )


def _rows(source: SourceFile, tensor: TensorInfo, start: int, stop: int) -> np.ndarray:
    dtype = NUMPY_DTYPE[tensor.dtype]
    row = tensor.nbytes // dtype.itemsize // tensor.shape[0]  # values
    flat = source.map(tensor.offset + start * row * dtype.itemsize, (stop - start) * row, dtype)
    return flat.reshape(stop - start, *tensor.shape[1:])
