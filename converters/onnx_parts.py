"""Runs prompts through a decoder's ONNX graph part by part, so that one layer's weights are in memory at a time.

The graph is one that converters.onnx_graph wrote: its nodes stand in the order of the layers, and each layer ends with
the norm before the next. Needs onnxruntime.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from edgeqwen.errors import EngineError
from edgeqwen.onnx_runtime import import_onnxruntime

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgeqwen.types import ModelShape

_LAST_OF_PART: Final = re.compile(r"(layers\.\d+\.attn_norm|norm)\.out")
_HEAD_BYTES: Final = 16 << 20  # of the head's weights that are loaded at a time

Values = dict[str, Any]  # tensors by name


@dataclass(frozen=True, slots=True)
class _Part:
    """Some consecutive nodes, and which of their outputs later ones read."""

    nodes: Sequence[NodeProto]
    outputs: Sequence[str]


class Parts:
    """The embedding is part 0, then come the layers, and last the head."""

    def __init__(self, model: ModelProto, folder: Path, shape: ModelShape) -> None:
        """`folder` holds the data file."""
        self._model, self._folder, self._shape = model, folder, shape
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._inputs = {given.name: given for given in model.graph.input}
        self._parts = _cut(model.graph.node)

    def __len__(self) -> int:
        """Without the head."""
        return len(self._parts) - 1

    def begin(self, prompts: Sequence[Sequence[int]]) -> Values:
        """What whole prompts give to part 0: one batch [prompts, longest], padded on the right.

        A weight is read, and for exact products made float32, once for all of them. `logit_rows` are the positions of
        batch * length that are no padding.
        """
        counts = [len(ids) for ids in prompts]
        batch = np.zeros((len(prompts), max(counts)), np.int64)
        for row, ids in zip(batch, prompts, strict=True):
            row[: len(ids)] = ids
        return {
            "input_ids": batch,
            "seqlens_k": np.array(counts, np.int32) - 1,
            "total_sequence_length": np.array(max(counts), np.int32),
            "logit_rows": np.flatnonzero(np.arange(max(counts)) < np.array(counts)[:, None]),
        }

    def run(
        self, number: int, values: Values, levels: Mapping[str, int], probes: Sequence[str] = ()
    ) -> tuple[Values, Values]:
        """What the batch gives to the next part, and the tensors `probes`; `levels`: accuracy levels by node."""
        return next(self.each(number, [values], levels, probes))

    def each(
        self, number: int, batches: Iterable[Values], levels: Mapping[str, int], probes: Sequence[str] = ()
    ) -> Iterator[tuple[Values, Values]]:
        """The same for one batch after the other, with the weights loaded once."""
        part = self._parts[number]
        session = self._session(part.nodes, [*part.outputs, *probes], levels, self._initializers)
        names = [output.name for output in session.get_outputs()]
        for values in batches:
            found = dict(zip(names, self._run(session, names, values), strict=True))
            always = {name: value for name, value in values.items() if name in self._inputs}
            yield always | {name: found[name] for name in part.outputs}, {name: found[name] for name in probes}
            del found  # what the caller has not kept is not there beside the next

    def products(self, number: int) -> dict[str, str]:
        """The products with stored levels of a part: node -> the name of its input."""
        return {node.name: node.input[0] for node in self._parts[number].nodes if node.op_type == "MatMulNBits"}

    def logits(self, values: Values, levels: Mapping[str, int]) -> npt.NDArray[np.float32]:
        """The head's [tokens of all prompts, vocab] behind the last layer."""
        found = np.empty((len(values["logit_rows"]), self._shape.vocab_size), np.float32)
        for first, stop, nodes, weights in self._head_rows():
            session = self._session(nodes, ["logits"], levels, self._initializers | weights)
            (found[:, first:stop],) = self._run(session, ["logits"], values)
        return found

    def _head_rows(self) -> Iterator[tuple[int, int, list[NodeProto], dict[str, TensorProto]]]:
        """The head over a run of the vocabulary: the same nodes over some rows of the same arrays."""
        *before, head = self._parts[-1].nodes
        arrays = [self._initializers[name] for name in head.input[1:] if name]
        count = self._shape.vocab_size
        step = max(64, _HEAD_BYTES // (_entry(arrays[0], "length") // count) // 64 * 64)
        for first in range(0, count, step):
            stop = min(count, first + step)
            node = NodeProto()
            node.CopyFrom(head)
            for attribute in node.attribute:
                if attribute.name == "N":
                    attribute.i = stop - first
            yield first, stop, [*before, node], {array.name: _rows(array, first, stop) for array in arrays}

    def _session(
        self,
        nodes: Sequence[NodeProto],
        outputs: Sequence[str],
        levels: Mapping[str, int],
        initializers: Mapping[str, TensorProto],
    ) -> Any:
        onnxruntime = import_onnxruntime()
        made = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
        graph = GraphProto(
            name="part",
            node=nodes,
            input=[self._inputs.get(name, _floats(name)) for name in read if name not in initializers],
            output=[_floats(name, rank=None) for name in dict.fromkeys(outputs)],
            initializer=[initializers[name] for name in read if name in initializers],
        )
        model = lift(ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import, graph=graph),
                     levels)  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # both keep memory for the next run
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._folder))
        try:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - its exceptions have no root of their own
            raise _failed(error) from None

    def _run(self, session: Any, names: Sequence[str], values: Values) -> Any:
        try:
            return session.run(names, self._feed(session, values))
        except Exception as error:  # noqa: BLE001
            raise _failed(error) from None

    def _feed(self, session: Any, values: Values) -> Values:
        """The inputs of a part: no past, but room for the prompts' keys and values."""
        shape = self._shape
        slots = (
            len(values["seqlens_k"]),
            shape.num_key_value_heads,
            int(values["total_sequence_length"]),
            shape.head_dim,
        )
        names = [given.name for given in session.get_inputs()]
        return {name: values[name] if name in values else np.zeros(slots, np.float32) for name in names}


def _failed(error: Exception) -> EngineError:
    return EngineError(f"ONNX Runtime cannot run the graph to compare or calibrate it: {error}")


def lift(model: ModelProto, levels: Mapping[str, int]) -> ModelProto:
    """A copy in which some products have another accuracy level."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.name in levels and node.op_type == "MatMulNBits":
            next(a for a in node.attribute if a.name == "accuracy_level").i = levels[node.name]
    return copy


def _cut(nodes: Sequence[NodeProto]) -> list[_Part]:
    """Cut behind each norm that begins a layer, and behind the last."""
    ends = [number + 1 for number, node in enumerate(nodes) if _LAST_OF_PART.fullmatch(node.name)]
    parts = []
    for start, stop in itertools.pairwise([0, *ends, len(nodes)]):
        later = {name for node in nodes[stop:] for name in node.input}
        made = [name for node in nodes[start:stop] for name in node.output]
        parts.append(_Part(nodes[start:stop], [name for name in made if name and name in later]))
    return parts


def _floats(name: str, rank: int | None = 3) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None if rank is None else [None] * rank)


def _entry(tensor: TensorProto, key: str) -> int:
    return int(next(entry.value for entry in tensor.external_data if entry.key == key))


def _rows(tensor: TensorProto, start: int, stop: int) -> TensorProto:
    """Some rows of an array in the data file."""
    row = _entry(tensor, "length") // tensor.dims[0]
    part = TensorProto()
    part.CopyFrom(tensor)
    part.dims[0] = stop - start
    for entry in part.external_data:
        if entry.key == "offset":
            entry.value = str(int(entry.value) + start * row)
        if entry.key == "length":
            entry.value = str((stop - start) * row)
    return part
