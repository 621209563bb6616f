"""An ONNX that a Hexagon HTP computes whole, in integers from the clip to the logits.

    clip ─ cast ─ permute ─ ×scale ─ +offset ─ q      float32, 5-D: HTP "cannot allocate" it
    clip ─ frames [T, 3, H, W] ─ 1×1 depthwise ─ q    int8: the same rounding, once

Weights stay int8, a scale per output channel; activations become uint8, HTP's own type, on the same grid, or uint16 on
one 256 times finer. Between two ops of QDQ there is always a rounding: a convolution that gives float to an add is no
QDQ op to ONNX Runtime, which then computes in float16 from weights that are dequantized first.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeact.targets._htp_mean import mean_in_integers
from edgeact.targets._qdq import fuse_activations

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["for_htp", "frames_first"]

_MOVES = ("Cast", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_NEW = "htp_"  # begins the names of what is added
_BYTE = "htp_byte"  # the zero of the pixels that a caller gives
_FINER = 256  # of uint16 against uint8
_MICROSOFT = "com.microsoft"  # its Q/DQ take uint16 in every opset (onnxruntime, ContribOperators.md), ONNX's from 21


def for_htp(model: "ModelProto", activations: str) -> None:
    """Rewrite an int8 `model`, as `to_onnx` writes it, in place; `activations` are `int8` or `int16`."""
    fuse_activations(model)
    mean_in_integers(model)
    frames_first(model)
    _regrid(model, np.uint8 if activations == "int8" else np.uint16)


def frames_first(model: "ModelProto") -> None:
    """Take the frames from the clip as 4-D tensors and normalise them at once; in place.

    In integers where whatever reads them rounds them alike; in float otherwise.
    """
    head = _Head(model)
    new = _Writer(model)
    grids = {tuple(end.input[1:]) if end.op_type == "QuantizeLinear" else () for end in head.ends}
    grid = next(iter(grids)) if len(grids) == 1 else ()
    x = new.normalized_int8(head, grid) if grid else new.normalized(head)
    for end, index in zip(head.ends, head.indices, strict=True):
        new.taken(x, head, index, end, grid)
    rest = [node for node in head.nodes if id(node) not in head.gone]
    kept = [type(node).FromString(node.SerializeToString()) for node in (*new.nodes, *rest)]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    _drop_unread(model)


def _drop_unread(model: "ModelProto") -> None:
    """Constants that no node reads any more; in place."""
    read = {name for node in model.graph.node for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)


class _Head:
    """From the clip to normalised frames, as `behind_uint8` and a lowering write it.

    Attributes:
        ends: The last node of each branch: Add, or the QuantizeLinear that alone reads it.
        indices: Which values of the clip it holds, by their place there.
        scale: What pixels are multiplied with, by channel.
        offset: What is then added.
        nodes: All of the graph.
        gone: Ids of those that are the head's.
    """

    def __init__(self, model: "ModelProto") -> None:
        from onnx import numpy_helper

        graph = model.graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.shape = tuple(dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim)
        self.places = np.arange(np.prod(self.shape)).reshape(self.shape)
        self.ends: list[NodeProto] = []
        self.indices: list[NDArray[np.int64]] = []
        self.gone: set[int] = set()
        self.nodes = list(graph.node)  # whose ids last as long as they are held
        held, scaled = {graph.input[0].name: self.places}, dict[str, NDArray[np.int64]]()
        for node in self.nodes:
            if node.input[0] in held:
                self.gone.add(id(node))
                if node.op_type == "Mul":
                    scaled[node.output[0]] = held[node.input[0]]
                    self.scale = constants[node.input[1]].reshape(-1)
                else:
                    held[node.output[0]] = _moved(node, held[node.input[0]], constants)
            elif node.input[0] in scaled:
                self.gone.add(id(node))
                assert node.op_type == "Add", f"{node.op_type} reads a clip that is not normalised"
                self.offset = constants[node.input[1]].reshape(-1)
                readers = [other for other in self.nodes if node.output[0] in other.input]
                end = readers[0] if [other.op_type for other in readers] == ["QuantizeLinear"] else node
                self.gone.add(id(end))
                self.ends.append(end)
                self.indices.append(scaled[node.input[0]])

    def frames(self, index: NDArray[np.int64]) -> tuple[int, int]:
        """The first of the frames `[N, 3, H, W]`, or `[1, 3, T, H, W]`, and how many follow in a row."""
        frames = index if index.ndim == 4 else index[0].transpose(1, 0, 2, 3)
        first = int(frames.flat[0]) // int(np.prod(self.shape[2:]))
        row = self.places[0, first : first + len(frames)].transpose(0, 3, 1, 2)
        assert np.array_equal(frames, row), "frames of the clip, in a row"
        return first, len(frames)


def _moved(node: "NodeProto", places: NDArray[np.int64], constants: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    from onnx.reference import ReferenceEvaluator

    assert node.op_type in _MOVES, f"{node.op_type} reads a raw clip"
    if node.op_type == "Cast":
        return places
    feeds = {node.input[0]: places} | {name: constants[name] for name in node.input[1:] if name}
    (moved,) = ReferenceEvaluator(node).run(None, feeds)
    return np.asarray(moved)


class _Writer:
    """New nodes, and their constants in the graph."""

    def __init__(self, model: "ModelProto") -> None:
        self.graph = model.graph
        self.clip = model.graph.input[0].name
        self.nodes: list[NodeProto] = []

    def constant(self, name: str, values: Any, kind: Any) -> str:
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values, kind), f"{_NEW}{name}"))
        return f"{_NEW}{name}"

    def op(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """The name of its result, a new one unless `output` is given."""
        from onnx import helper

        name = f"{_NEW}{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output or name], name=name, **attributes))
        return output or name

    def rounded(self, kind: str, inputs: Sequence[str], grid: Sequence[str], **attributes: Any) -> str:
        """The op, and its result on `grid`."""
        levels = self.op("QuantizeLinear", [self.op(kind, inputs, **attributes), *grid])
        return self.op("DequantizeLinear", [levels, *grid])

    def pixels(self, head: _Head) -> str:
        """Frames `[T, 3, H, W]` of the clip, moved while they are levels; where activations are uint16, those."""
        one = self.constant("one", 1, np.float32)
        byte, pixel = ((one, self.constant(name, 0, np.uint8)) for name in ("byte", "pixel"))
        x = self.rounded("DequantizeLinear", [self.clip, *byte], pixel)
        x = self.rounded("Reshape", [x, self.constant("shape", head.shape[1:], np.int64)], pixel)
        return self.rounded("Transpose", [x], pixel, perm=[0, 3, 1, 2])

    def normalized_int8(self, head: _Head, grid: Sequence[str]) -> str:
        """By a depthwise 1x1 convolution with weights of 127 in units of scale / 127: they round nothing."""
        weights = (
            self.constant("weight", np.full((3, 1, 1, 1), 127), np.int8),
            self.constant("weight_scale", head.scale / 127, np.float32),
            self.constant("weight_zero", np.zeros(3), np.int8),
        )
        weight = self.op("DequantizeLinear", weights, axis=0)
        inputs = [self.pixels(head), weight, self.constant("offset", head.offset, np.float32)]
        return self.rounded("Conv", inputs, grid, group=3)

    def normalized(self, head: _Head) -> str:
        """As it was; of a cast to float32, not to float16, QNN 2.51 makes a network that does not see its clip."""
        from onnx import helper

        kind, wide = head.scale.dtype, (1, 3, 1, 1)
        if kind == np.float32:
            x = self.pixels(head)
        else:
            x = self.op("Reshape", [self.clip, self.constant("shape", head.shape[1:], np.int64)])
            x = self.op("Transpose", [x], perm=[0, 3, 1, 2])
            x = self.op("Cast", [x], to=helper.np_dtype_to_tensor_dtype(kind))
        x = self.op("Mul", [x, self.constant("scale", head.scale.reshape(wide), kind)])
        return self.op("Add", [x, self.constant("offset", head.offset.reshape(wide), kind)])

    def taken(self, x: str, head: _Head, index: NDArray[np.int64], end: "NodeProto", grid: Sequence[str]) -> None:
        """Of the normalised frames `x` those of `index`, by the name that `end` gave them."""
        name = end.output[0]
        first, count = head.frames(index)
        moves: list[tuple[str, list[str], dict[str, Any]]] = []
        if count < head.shape[1]:
            bounds = (("first", first), ("last", first + count), ("axis", 0))
            moves.append(("Slice", [self.constant(f"{name}_{of}", [value], np.int64) for of, value in bounds], {}))
        if index.ndim == 5:
            moves.append(("Transpose", [], {"perm": [1, 0, 2, 3]}))
            moves.append(("Reshape", [self.constant(f"{name}_shape", index.shape, np.int64)], {}))
        for kind, more, attributes in moves:
            inputs = [x, *more]
            x = self.rounded(kind, inputs, grid, **attributes) if grid else self.op(kind, inputs, **attributes)
        rounds = end.op_type == "QuantizeLinear"
        self.op(end.op_type if rounds else "Identity", [x, *end.input[1:]] if rounds else [x], name)


def _regrid(model: "ModelProto", kind: "type[np.uint8 | np.uint16]") -> None:
    """Activations, and constants among them, as `kind`; weights, and what a caller gives, stay as they are.

    Each level of int8 is 128 higher in uint8, and so is its zero; in uint16 it is 256 times that, and so are the levels
    of a scale.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights = {node.input[1] for node in graph.node if node.op_type in _WEIGHTED}
    finer = 1 if kind is np.uint8 else _FINER
    changed: dict[str, str] = {}

    def other(name: str) -> str:
        if name not in changed:
            values = numpy_helper.to_array(constants[name])
            if values.dtype.kind == "f":
                values = values / np.float32(finer)
            else:
                values = ((values.astype(np.int32) + (128 if values.dtype == np.int8 else 0)) * finer).astype(kind)
            changed[name] = f"{name}_{np.dtype(kind)}"
            graph.initializer.append(numpy_helper.from_array(values, changed[name]))
        return changed[name]

    for node in graph.node:
        rounds = node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.output[0] not in weights
        if not rounds or node.input[2] == _BYTE:
            continue
        for i, name in enumerate(node.input):
            node.input[i] = other(name) if name in constants else name
        node.domain = "" if kind is np.uint8 else _MICROSOFT
    _drop_unread(model)
    if kind is np.uint16:
        model.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
