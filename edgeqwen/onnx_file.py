"""Checks an ONNX graph and its data file before native code sees either; it knows the container and no engine.

The protobuf is walked by hand, bounded: operators from a list, no subgraphs, no functions, no sparse or string tensors.
Weights are plain regions of one file beside the graph, inside it; no two of them overlap in part. Source: onnx.proto.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from edgeqwen.artifact import Artifact, mending
from edgeqwen.errors import ArtifactError
from edgeqwen.types import ModelShape

MAX_GRAPH_BYTES = 16 << 20
MAX_NODES, MAX_TENSORS, MAX_RANK = 1 << 16, 1 << 14, 8
MAX_TEXT_BYTES = 4096  # of a name
MAX_INLINE_BYTES = 1 << 20  # of a tensor inside the graph: shapes and the like
OPERATORS = frozenset({
    "Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Cos", "Div", "Equal", "Erf", "Expand", "Flatten",
    "FusedMatMul", "Gather", "GatherBlockQuantized", "GatherElements", "GatherND", "Gemm", "Greater", "GreaterOrEqual",
    "GroupQueryAttention", "Identity", "IsNaN", "LayerNormalization", "Less", "LessOrEqual", "MatMul", "MatMulNBits",
    "Max", "Min", "Mul", "Neg", "Not", "Or", "And", "Pow", "QuickGelu", "Range", "Reciprocal", "ReduceMean",
    "ReduceSum", "Reshape", "ScatterND", "Shape", "Sigmoid", "SimplifiedLayerNormalization", "Sin",
    "SkipSimplifiedLayerNormalization", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile",
    "Transpose", "Trilu", "Unsqueeze", "Where",
})  # fmt: skip
DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
# Inputs 5 and 6 of GroupQueryAttention say where in the cache native code writes: they are the engine's own figures.
LENGTH_INPUTS = ["seqlens_k", "total_sequence_length"]
# Optional inputs that no decoder here needs, and that say where native code reads: position_ids, g_idx.
UNUSED_INPUTS = {"GroupQueryAttention": slice(9, None), "MatMulNBits": slice(4, 5)}
# TensorProto.DataType -> its name and the bytes of an element
_TYPES = {
    1: ("float32", 4), 2: ("uint8", 1), 3: ("int8", 1), 4: ("uint16", 2), 5: ("int16", 2), 6: ("int32", 4),
    7: ("int64", 8), 9: ("bool", 1), 10: ("float16", 2), 11: ("float64", 8), 12: ("uint32", 4), 13: ("uint64", 8),
    16: ("bfloat16", 2),
}  # fmt: skip
_MATRIX_PART = re.compile(r"\.(weight|scales)(\.\w+)?$")  # behind a matrix's name
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Fields = Iterator[tuple[int, Any]]  # number, and an int or a memoryview


@dataclass(frozen=True, slots=True)
class Region:
    """The bytes of a tensor in the data file."""

    name: str
    type: str
    dims: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A graph that has been checked: its inputs and outputs by name, and the data file, if there is one."""

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    data: Path | None
    tensors: tuple[Region, ...]  # in the data file; what has two names stands here once
    sha256: str  # of the graph

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def check_onnx(path: Path, files: Mapping[str, int]) -> OnnxFile:
    """Check a graph; `files` are the payloads of its artifact and their sizes. ArtifactError says what is wrong."""
    # ONNX Runtime would take an .ort file for its own format, which nobody checks; .tmp is a graph not yet in its place
    if path.suffix not in {".onnx", ".tmp"}:
        raise ArtifactError(f"{path}: a graph's name ends in .onnx")
    raw = memoryview(_read(path))
    try:
        return _model(path, raw, files)
    except (IndexError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: is cut short or no ONNX graph: {error}") from None


def check_graph(artifact: Artifact) -> OnnxFile:
    """Check the graph of an artifact, and that it is of the manifest's shape."""
    manifest = artifact.manifest
    checked = check_onnx(artifact.file("onnx"), {name: payload.size for name, payload in manifest.files.items()})
    _check_shape(checked, manifest.shape)
    return checked


def _check_shape(checked: OnnxFile, shape: ModelShape) -> None:
    """ArtifactError where a graph is of another shape than its manifest says, as far as names and arrays tell.

    Another exporter's arrays have other names: of its graphs the layers alone are counted.
    """
    layers = sum(name.startswith("past_key_values.") and name.endswith(".key") for name in checked.inputs)
    wanted = {
        "cos": (shape.max_position_embeddings, shape.head_dim // 2),
        "norm": (shape.hidden_size,),
        "table": (shape.vocab_size,),
        "layers.0.qkv": ((shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim,),
        "layers.0.gate_up": (2 * shape.intermediate_size,),
    }
    other = []
    for tensor in checked.tensors:
        expected = wanted.get(_MATRIX_PART.sub("", tensor.name), ())
        if tensor.dims[: len(expected)] != expected:
            other.append(f"{tensor.name} is {tensor.dims}, not {expected}")
    if layers != shape.num_hidden_layers:
        other.insert(0, f"{layers} layers, not {shape.num_hidden_layers}")
    if other:
        raise ArtifactError(f"{checked.path}: manifest.json and the graph are of different shapes: {'; '.join(other)}")


def _read(path: Path) -> bytes:
    status = _plain_file(path)
    if status.st_size > MAX_GRAPH_BYTES:
        raise ArtifactError(f"{path} has {status.st_size} bytes; a graph of at most {MAX_GRAPH_BYTES} is accepted")
    return path.read_bytes()


def _plain_file(path: Path) -> os.stat_result:
    """A regular file with one name: neither a symbolic link nor a hard one."""
    try:
        status = path.lstat()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{path} is no regular file (symbolic links are refused)")
    if status.st_nlink != 1:
        raise ArtifactError(f"{path} has {status.st_nlink} names (hard links are refused): copy it")
    return status


def _model(path: Path, raw: memoryview, files: Mapping[str, int]) -> OnnxFile:
    graphs = [value for number, value in _fields(raw, path) if _known(number, {7}, {20, 25}, path, "the model")]
    if len(graphs) != 1:
        raise ArtifactError(f"{path} holds {len(graphs)} graphs; one is expected")
    nodes = 0
    inputs: list[str] = []
    outputs: list[str] = []
    regions: list[Region] = []
    locations: set[str] = set()
    operators: set[str] = set()
    stored: set[str] = set()
    for number, value in _fields(graphs[0], path):
        if not _known(number, {1, 5, 11, 12}, {15}, path, "the graph"):
            continue
        if number == 1:
            nodes += 1
            operators.add(_check_node(value, path))
        elif number == 5:
            name, region, location = _tensor(value, path)
            stored.add(name)
            if region is not None:
                regions.append(region)
                locations.add(location)
        else:
            (inputs if number == 11 else outputs).append(_text(value, 1, path))
        if nodes > MAX_NODES or len(regions) > MAX_TENSORS:
            raise ArtifactError(f"{path} has more than {MAX_NODES} nodes or {MAX_TENSORS} tensors")
    if "GroupQueryAttention" in operators and not set(LENGTH_INPUTS) <= set(inputs) - stored:
        raise ArtifactError(f"{path}: {' and '.join(LENGTH_INPUTS)} are no inputs, but figures of the file: refused")
    data = _data_file(path, locations, files)
    _check_regions(path, regions, files[data.name] if data else 0)
    once = {(region.offset, region.nbytes): region for region in reversed(regions)}
    digest = hashlib.sha256(raw).hexdigest()
    return OnnxFile(path, tuple(inputs), tuple(outputs), data, tuple(reversed(once.values())), digest)


def _known(number: int, wanted: set[int], refused: set[int], path: Path, where: str) -> bool:
    if number in refused:
        raise ArtifactError(f"{path}: {where} has functions, training steps or sparse tensors: refused")
    return number in wanted


def _check_node(node: Any, path: Path) -> str:
    """The operator."""
    operator = domain = ""
    inputs: list[str] = []
    for number, value in _fields(node, path):
        if number == 1:
            inputs.append(_decoded(value, path))
        elif number == 4:
            operator = _decoded(value, path)
        elif number == 7:
            domain = _decoded(value, path)
        elif number == 5:
            _check_attribute(value, path)
    if operator not in OPERATORS or domain not in DOMAINS:
        raise ArtifactError(f"{path}: operator {domain or 'ai.onnx'}:{operator[:60]!r} is none that a decoder needs")
    if operator == "GroupQueryAttention" and inputs[5:7] != LENGTH_INPUTS:
        raise ArtifactError(f"{path}: attention takes its lengths from {inputs[5:7]!r:.80}, not from {LENGTH_INPUTS}")
    if any(inputs[UNUSED_INPUTS.get(operator, slice(0))]):
        raise ArtifactError(f"{path}: {operator} has an input that no decoder needs: {inputs[-1]!r:.80}")
    return operator


def _check_attribute(attribute: Any, path: Path) -> None:
    for number, value in _fields(attribute, path):
        if number in {6, 10, 11, 22, 23}:  # graphs, lists of tensors, sparse tensors
            raise ArtifactError(f"{path}: an attribute holds a graph or a list of tensors: refused")
        if number == 5 and _tensor(value, path)[1] is not None:
            raise ArtifactError(f"{path}: an attribute refers to a data file: refused")


def _tensor(tensor: Any, path: Path) -> tuple[str, Region | None, str]:
    """A tensor's name and where its bytes are; None for one inside the graph."""
    dims: list[int] = []
    external: dict[str, str] = {}
    kind, name, outside, inline = 0, "", False, 0
    for number, value in _fields(tensor, path):
        if number == 1:
            dims = [*dims, *_dims(value, path)][: MAX_RANK + 1]
        elif number == 2:
            kind = value
        elif number == 8:
            name = _decoded(value, path)
        elif number == 13:
            _place(external, value, path)
        elif number == 14:
            outside = value == 1
        elif number in {6, 3}:
            raise ArtifactError(f"{path}: tensor {name[:60]!r} holds strings or a segment: refused")
        elif isinstance(value, memoryview):
            inline += len(value)
    if len(dims) > MAX_RANK or kind not in _TYPES or any(not 0 <= size < 1 << 40 for size in dims):
        raise ArtifactError(f"{path}: tensor {name[:60]!r} has the type {kind} and the shape {dims[:9]}")
    if not outside:
        if inline > MAX_INLINE_BYTES or external:
            raise ArtifactError(f"{path}: tensor {name[:60]!r} of {inline} bytes stands inside the graph")
        return name, None, ""
    return name, _region(path, name, external, (kind, tuple(dims))), external.get("location", "")


def _dims(value: Any, path: Path) -> Iterator[int]:
    """Sizes of one field: a single one, or packed ones of which no more are read than a tensor may have."""
    return iter((value,)) if isinstance(value, int) else islice(_packed(value, path), MAX_RANK + 1)


def _place(external: dict[str, str], entry: Any, path: Path) -> None:
    """Note one entry of where a tensor's bytes are."""
    key = _text(entry, 1, path)
    if key in external:
        raise ArtifactError(f"{path}: a tensor is placed twice by {key[:60]!r}")
    external[key] = _text(entry, 2, path)


def _region(path: Path, name: str, external: Mapping[str, str], what: tuple[int, tuple[int, ...]]) -> Region:
    kind, dims = what
    nbytes = math.prod(dims) * _TYPES[kind][1]
    if not external.keys() <= {"location", "offset", "length", "checksum"}:
        raise ArtifactError(f"{path}: tensor {name[:60]!r} is placed by {sorted(external)}")
    figures = [external.get("offset", "0"), external.get("length", str(nbytes))]
    if not all(text.isdecimal() and len(text) < 16 for text in figures):
        raise ArtifactError(f"{path}: tensor {name[:60]!r} is placed at {figures}")
    offset, length = map(int, figures)
    if length != nbytes:
        raise ArtifactError(f"{path}: tensor {name[:60]!r} takes {nbytes} bytes and {length} are stated")
    return Region(name, _TYPES[kind][0], dims, offset, nbytes)


def _data_file(path: Path, locations: set[str], files: Mapping[str, int]) -> Path | None:
    if not locations:
        return None
    location = locations.pop()
    if locations or location not in files or Path(location).name != location or location == path.name:
        raise ArtifactError(f"{path}: its weights are in {location!r:.80}; one payload of the artifact is expected")
    data = path.with_name(location)
    if _plain_file(data).st_size != files[location]:
        raise ArtifactError(f"{data} has another size than the manifest says: {mending(data.parent)}")
    return data


def _check_regions(path: Path, regions: list[Region], size: int) -> None:
    """Inside the file; two are the same or apart."""
    end, last = 0, (0, 0)
    for region in sorted(regions, key=lambda region: (region.offset, region.nbytes)):
        here = (region.offset, region.nbytes)
        if region.offset + region.nbytes > size:
            raise ArtifactError(f"{path}: tensor {region.name[:60]!r} ends behind the data file's {size} bytes")
        if here != last and region.offset < end:
            raise ArtifactError(f"{path}: tensor {region.name[:60]!r} overlaps another in part")
        end, last = max(end, region.offset + region.nbytes), here


def _text(message: Any, wanted: int, path: Path) -> str:
    """A string field of a small message; empty when it is not there."""
    found = ""
    for number, value in _fields(message, path):
        if number == wanted:
            found = _decoded(value, path)
    return found


def _decoded(value: Any, path: Path) -> str:
    """A field's text; a number in its place would make bytes() reserve as many."""
    if not isinstance(value, memoryview) or len(value) > MAX_TEXT_BYTES:
        raise ArtifactError(f"{path}: is no ONNX graph: a name of at most {MAX_TEXT_BYTES} bytes is expected")
    return bytes(value).decode()


def _packed(data: memoryview, path: Path) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at, path)
        yield value


def _fields(data: Any, path: Path) -> Fields:
    """The fields of a message in their order; groups and truncated fields are refused, numbers for messages as well."""
    if not isinstance(data, memoryview):
        raise ArtifactError(f"{path}: is no ONNX graph: a number stands where a message is expected")
    at = 0
    while at < len(data):
        key, at = _varint(data, at, path)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at, path)
            yield number, value
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire, -1)
        if wire == _BYTES:
            length, at = _varint(data, at, path)
        if length < 0 or number == 0 or at + length > len(data):
            raise ArtifactError(f"{path}: is cut short or no ONNX graph (field {number}, wire type {wire})")
        yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int, path: Path) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ArtifactError(f"{path}: is no ONNX graph: a number of more than 64 bits")
