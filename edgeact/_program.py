"""A network as data: `model.json`, its graph in PyTorch's core ATen ops, and `model.safetensors`, its constants.

`torch.export.load` unpickles with `weights_only=False`, and evaluates strings of the file as Python (sympy's
`sympify`): a bundle of a stranger could run anything. Here no string of the file is evaluated or imported, or becomes a
name in generated code. An op is looked up by two identifiers among those that PyTorch tags as core or pointwise; what
reads memory or random numbers, writes, or is made for training is left out.
"""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeact.errors import BundleError, MissingDependencyError, ToolchainError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

__all__ = ["GRAPH", "WEIGHTS", "is_float16", "read_program", "unwritable", "write_program"]

GRAPH, WEIGHTS = "model.json", "model.safetensors"

_VERSION = 1
_MAX_GRAPH_BYTES = 256 << 20
_OP = re.compile(r"(_?[a-z][a-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)")
_TEXT = re.compile(r"[a-z]*")  # a mode, such as "floor" or "tanh"
_DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
_LAYOUTS = ("strided",)
_MEMORY = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
_REFUSED = re.compile(
    r"as_strided|empty.*|rand.*|.*dropout|bernoulli.*|.*_backward|sym_.*|_local_scalar_dense|_embedding_bag|nonzero|copy"
)
_GETITEM = "getitem"  # one of the results of the op before


def write_program(program: "ExportedProgram", folder: Path) -> None:
    """Write `program`, a uint8 `clip_BTHWC` -> `logits_BK`, into `folder`.

    Raises:
        ToolchainError: It holds something that the format has no word for.
        MissingDependencyError: safetensors is not installed.
    """
    import torch

    save = _safetensors("writing this bundle").save_file
    module = _decomposed(program)
    index: dict[torch.fx.Node, Any] = {}
    constants: dict[str, torch.Tensor] = {}
    nodes: list[dict[str, Any]] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            index[node] = {"$clip": 0}
        elif node.op == "get_attr":
            index[node] = {"$constant": str(len(constants))}
            constants[str(len(constants))] = _attribute(module, str(node.target)).detach().contiguous().clone()
        elif node.op == "call_function" and not str(node.target).startswith("aten._assert_"):
            word = _word(node, index)
            index[node] = {"$node": len(nodes)}
            nodes.append(word)
    (result,) = module.graph.output_node().args
    logits = result[0] if isinstance(result, list | tuple) else result
    told = {"version": _VERSION, "nodes": nodes, "logits": _encode(logits, index)}
    save(constants, folder / WEIGHTS)
    (folder / GRAPH).write_text(json.dumps(told, separators=(",", ":")))


def unwritable(program: "ExportedProgram") -> "dict[torch.fx.Node, str]":
    """What `write_program` would refuse of `program`: nodes of its decomposed graph, and why."""
    graph = _decomposed(program).graph
    index = dict.fromkeys(graph.nodes)
    found = {}
    for node in graph.nodes:
        if node.op == "call_function" and not str(node.target).startswith("aten._assert_"):
            try:
                _word(node, index)
            except ToolchainError as exc:
                found[node] = str(exc)
    return found


def read_program(folder: Path, shape: tuple[int, ...], device: str = "cpu") -> "ExportedProgram":
    """The program of `folder` for clips of that shape, on that device.

    Raises:
        BundleError: The files are not a program, or hold anything but core ATen ops on constants and the clip.
        MissingDependencyError: torch or safetensors is not installed.
    """
    try:
        import torch
    except ImportError as exc:
        raise MissingDependencyError("torch", "aotinductor", "running this bundle") from exc
    load = _safetensors("running this bundle").load_file
    try:
        if (folder / GRAPH).stat().st_size > _MAX_GRAPH_BYTES:
            raise ValueError(f"it is larger than {_MAX_GRAPH_BYTES >> 20} MiB")
        told = json.loads((folder / GRAPH).read_text())
        if told["version"] != _VERSION:
            raise ValueError(f"it is of version {told['version']!r}, and this edgeact reads {_VERSION}")
        module = _build(told, load(folder / WEIGHTS, device=device), torch.device(device))
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch's own deprecated calls
            program = torch.export.export(module, (torch.zeros(shape, dtype=torch.uint8, device=device),))
        (logits,) = (node.meta["val"] for node in program.graph.output_node().args[0])
        if logits.dtype != torch.float32 or logits.ndim != 2 or len(logits) != 1:
            raise ValueError(f"it gives {logits.dtype} of shape {tuple(logits.shape)}, not float32 logits [1, K]")
    except Exception as exc:  # torch raises what it likes on a graph whose shapes do not fit
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        raise BundleError(f"{folder / GRAPH} is not a program: {lines[0] if lines else repr(exc)}") from exc
    return program


def is_float16(folder: Path) -> bool:
    """Whether the program's weights are float16, by the header of its constants (see safetensors' format)."""
    with (folder / WEIGHTS).open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return any(tensor.get("dtype") == "F16" for tensor in header.values())


def _build(told: Mapping[str, Any], constants: Mapping[str, "torch.Tensor"], device: "torch.device") -> Any:
    import operator

    import torch
    from torch import fx, nn

    root, graph = nn.Module(), fx.Graph()
    clip = graph.placeholder("clip")
    held: dict[str, fx.Node] = {}
    nodes: list[fx.Node] = []
    for name, constant in constants.items():
        attribute = f"constant_{len(held)}"
        root.register_buffer(attribute, constant)
        held[name] = graph.get_attr(attribute)
    found: dict[str, Any] = {"$clip": [clip], "$constant": held, "$node": nodes, "$device": [device]}
    for kind, words in (("$dtype", _DTYPES), ("$layout", _LAYOUTS), ("$memory", _MEMORY)):
        found[kind] = {word: getattr(torch, word) for word in words}
    for node in told["nodes"]:
        op = operator.getitem if node["op"] == _GETITEM else _find_op(node["op"])
        if op is None:
            raise ValueError(f"the op {node['op']!r} is not allowed")
        args = _decode(node["args"], found)
        kwargs = {key: _decode(value, found) for key, value in node["kwargs"].items()}
        if not all(key.isidentifier() for key in kwargs):
            raise ValueError(f"the arguments {list(kwargs)} are not allowed")
        if op is operator.getitem and not (isinstance(args[0], fx.Node) and type(args[1]) is int):
            raise ValueError(f"{_GETITEM} takes a node and a number")
        nodes.append(graph.call_function(op, tuple(args), kwargs))
    graph.output(_decode(told["logits"], found))
    return fx.GraphModule(root, graph)


def _find_op(name: Any) -> Any:
    """The ATen op `name.overload`; None where it does not exist or is not allowed."""
    import torch

    match = _OP.fullmatch(name) if isinstance(name, str) else None
    op = getattr(getattr(torch.ops.aten, match[1], None), match[2], None) if match else None
    if match is None or not isinstance(op, torch._ops.OpOverload) or _REFUSED.fullmatch(match[1]):
        return None
    pure = not op._schema.is_mutable and {torch.Tag.core, torch.Tag.pointwise} & set(op.tags)
    return op if pure else None


def _decomposed(program: "ExportedProgram") -> "torch.fx.GraphModule":
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own deprecated calls
        module = program.run_decompositions().module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    return module


def _word(node: "torch.fx.Node", index: Mapping[Any, Any]) -> dict[str, Any]:
    """A call of an op in JSON types."""
    name = _GETITEM if getattr(node.target, "__name__", "") == _GETITEM else str(node.target)
    if name != _GETITEM and not (name.startswith("aten.") and _find_op(name.removeprefix("aten."))):
        raise ToolchainError(f"a bundle has no word for the op {name}: it is not one of PyTorch's core ops")
    kwargs = {key: _encode(value, index) for key, value in node.kwargs.items()}
    return {"op": name.removeprefix("aten."), "args": _encode(node.args, index), "kwargs": kwargs}


def _encode(value: Any, index: Mapping[Any, Any]) -> Any:
    """An argument of an op in JSON types."""
    import torch

    if isinstance(value, torch.fx.Node):
        return index[value]
    if isinstance(value, list | tuple):
        return [_encode(item, index) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for kind, word in (("$dtype", torch.dtype), ("$layout", torch.layout), ("$memory", torch.memory_format)):
        if isinstance(value, word):
            return {kind: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"$device": 0}
    raise ToolchainError(f"a bundle has no word for an argument {value!r} of type {type(value).__name__}")


def _decode(value: Any, found: Mapping[str, Any]) -> Any:
    """What `_encode` wrote: a number, a word of a mode, a list, or a reference to what was `found` of its kind."""
    if isinstance(value, str) and not _TEXT.fullmatch(value):
        raise ValueError(f"the text {value!r} is not allowed")
    if isinstance(value, list):
        return [_decode(item, found) for item in value]
    if isinstance(value, dict):
        ((kind, name),) = value.items()
        return found[kind][name]
    return value


def _attribute(module: Any, name: str) -> "torch.Tensor":
    for part in name.split("."):
        module = getattr(module, part)
    tensor: torch.Tensor = module
    return tensor


def _safetensors(purpose: str) -> Any:
    try:
        import safetensors.torch
    except ImportError as exc:
        raise MissingDependencyError("safetensors", "aotinductor", purpose) from exc
    return safetensors.torch
