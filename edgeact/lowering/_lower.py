"""The walk over the graph: every op by its rule, in order, each value whole or Timed."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import fx
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils._pytree import tree_leaves, tree_unflatten

from edgeact.errors import InputError, LoweringError, UnknownNameError
from edgeact.lowering import (  # noqa: F401 (importing them fills RULES)
    convolution,
    frames,
    matrix,
    movement,
    normalization,
    pointwise,
    pooling,
    reduction,
    resize,
    shapes,
    writes,
)
from edgeact.lowering._emitter import ORIGIN, Emitter, QuantizedConstant, shape_of
from edgeact.lowering._prepare import example, prepare, quiet
from edgeact.lowering._rules import (
    DATA_DEPENDENT,
    RULES,
    Lowering,
    TapsRule,
    UnsupportedError,
    any_timed,
    default_taps,
    is_pointwise,
)
from edgeact.lowering._timed import Form, Timed, filled
from edgeact.lowering.quantized import settle_scales

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["lower", "rewrite"]

_aten = torch.ops.aten
# What torch's decompositions leave of layers in training mode alone.
_TRAINING = {
    _aten.native_dropout.default: "dropout",
    _aten.bernoulli.p: "dropout",
    _aten._native_batch_norm_legit_functional.default: "BatchNorm",
}


def lower(program: "ExportedProgram", *, form: Form = "unrolled", taps: TapsRule = default_taps) -> "ExportedProgram":
    """Rewrite a 3-D network into an equal one of 2-D ops.

    Args:
        program: A network in eval mode with static shapes and a batch of 1, BatchNorm folded or not, float or with
            PT2E's quantize and dequantize nodes.
        form: "unrolled", one `[1, C, H, W]` tensor per frame; or "folded", time in the batch, `[T, C, H, W]`.
        taps: Chooses how each dense convolution over time is written.

    Returns:
        A program of the same inputs and outputs, equal up to the rounding of float sums in another order.

    Raises:
        UnknownNameError: There is no such form.
        InputError: What is given is not exported, its shapes are dynamic, or its batch is not 1.
        LoweringError: An op cannot be lowered; its name, its place in the user's source and what is supported.
    """
    if form not in get_args(Form):
        raise UnknownNameError("form", form, get_args(Form))
    _check_exported(program)
    lowered, examples = rewrite(prepare(program), form, taps)
    settle_scales(lowered)
    forward = program.module_call_graph[0].signature
    assert forward is not None
    assert forward.forward_arg_names is not None
    lowered.graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(forward.forward_arg_names, forward.in_spec, forward.out_spec)))
    lowered.recompile()
    args, kwargs = tree_unflatten(examples, forward.in_spec)
    with quiet(), torch.no_grad():
        exported = torch.export.export(lowered, args, kwargs)
    keep_origins(lowered.graph, exported.graph)
    return exported


def keep_origins(before: fx.Graph, after: fx.Graph) -> None:
    """The layers of the user's model and their source lines, which `torch.export.export` drops; in place."""
    calls = ([node for node in graph.nodes if node.op == "call_function"] for graph in (before, after))
    for written, node in zip(*calls, strict=True):
        assert node.target is written.target, "an export of ATen ops keeps them, and their order"
        node.meta |= {name: written.meta[name] for name in ORIGIN if name in written.meta}


def _check_exported(program: Any) -> None:
    if not isinstance(program, torch.export.ExportedProgram):
        given = type(program).__name__
        raise InputError(f"lower() takes an exported program, not {given}: torch.export.export(model.eval(), (clip,))")


def rewrite(
    graph: fx.GraphModule,
    form: Form,
    taps: TapsRule = default_taps,
    refused: dict[fx.Node, str] | None = None,
) -> tuple[fx.GraphModule, tuple[Any, ...]]:
    """The 2-D module of a prepared `graph`, from a list of inputs to a list of outputs, and inputs to export it with.

    Every node of it names the node of `graph` that it comes from in `meta["source"]`. Where `refused` is given, an op
    that cannot be lowered is kept as it is and noted there with the reason, instead of raising.
    """
    lo = Lowering(Emitter(), form, taps)
    values: dict[fx.Node, Any] = {}
    cuts: dict[fx.Node, int] = {}
    outputs: Any = None
    examples = []
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            examples.append(example(node))
            values[node] = lo.e.input(str(node.target), examples[-1])
            cuts |= _cut(node)
        elif node.op == "get_attr":
            values[node] = _attribute(graph, str(node.target))
        elif node.op == "output":
            outputs = [
                lo.whole(values[leaf]) if isinstance(leaf, fx.Node) else leaf for leaf in tree_leaves(node.args[0])
            ]
        else:
            try:
                values[node] = _lower_node(lo, node, values)
            except LoweringError as exc:
                if refused is None:
                    raise
                refused[node] = str(exc)
                values[node] = _kept(lo, node, values)
        if node in cuts:
            values[node] = lo.timed(values[node], cuts[node])
    return lo.e.finish(outputs), tuple(examples)


def _is_quantization(op: Any) -> bool:
    return str(op).startswith("quantized_decomposed.")


def _lower_node(lo: Lowering, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    op: Any = node.target
    both: Any = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    args, kwargs = both
    if getattr(op, "__name__", "") == "getitem":
        item = args[0][args[1]]
        if item is None and node.users:
            of: Any = node.args[0]
            raise LoweringError(f"{_where(of)}: its values alone are computed, not their indices")
        return item
    lo.op, lo.e.source = op, node
    try:
        return _value(lo, node, args, kwargs)
    except UnsupportedError as exc:
        raise LoweringError(f"{_where(node)}: {exc}") from exc
    except DynamicOutputShapeException as exc:
        raise LoweringError(f"{_where(node)}: {DATA_DEPENDENT}") from exc
    except Exception as exc:  # torch refuses what no rule foresaw, in errors of many classes and in words of its inside
        does = f"; supported is: {str(RULES[op].__doc__).partition(chr(10))[0]}" if op in RULES else ""
        raise LoweringError(f"{_where(node)} with these arguments{does}") from exc


def _value(lo: Lowering, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """An op by its rule, by the one for all pointwise ops, or as it is where no time is left."""
    op: Any = node.target
    if op in RULES:
        return RULES[op](lo, *args, **kwargs)
    if op in _TRAINING:
        raise UnsupportedError(f"{_TRAINING[op]} in training mode: call .eval() before the export")
    if op is _aten.sym_size.int:
        raise UnsupportedError(DATA_DEPENDENT)
    if op is _aten.copy_.default:
        return _write(node)
    if torch.Tag.nondeterministic_seeded in getattr(op, "tags", ()):
        raise UnsupportedError("its values are random: an exported network must give the same logits for the same clip")
    timed = any_timed(args)
    if _is_quantization(op):
        return _quantize(lo, node, args)
    if is_pointwise(op) and timed:
        return pointwise.pointwise(lo, op, args, kwargs)
    if not timed and "3d" not in str(op):  # which would reach a runtime that cannot run it
        return lo.e(op, *args, **kwargs)
    names = {str(known).removeprefix("aten.").partition(".")[0] for known in RULES}
    supported = ", ".join(sorted(name for name in names if not name.startswith("_")))
    what = "on a tensor with time" if timed else "of volumes"
    raise UnsupportedError(f"there is no rule for this op {what}; supported are all pointwise ops and: {supported}")


def _write(copy: fx.Node) -> None:
    """What functionalization leaves of writes: into an input, which ends with the call; into a buffer, which stays."""
    written: Any = copy.args[0]
    if written.op == "get_attr":
        raise UnsupportedError(
            f"the network writes its buffer {written.target!r}: an exported one keeps nothing for the next clip"
        )


def _kept(lo: Lowering, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The op as it is, on whole tensors; its frames are cut again, so that what follows is judged as well."""
    if node.target is _aten.copy_.default:
        return None  # of a constant it would happen here, in the user's model
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: lo.whole(values[n]))
    value = lo.e(node.target, *args, **kwargs)
    shape = () if isinstance(value, list) else shape_of(value)
    return lo.timed(value, 2) if len(shape) == 5 and shape[0] == 1 else value


def _quantize(lo: Lowering, node: fx.Node, args: tuple[Any, ...]) -> Any:
    """A quantize or dequantize node: per tensor it commutes with everything that moves data."""
    op: Any = node.target
    value, *rest = args
    if isinstance(value, Timed):
        if "per_channel" in str(op):
            raise UnsupportedError("activations quantized per channel")
        if not _keeps_zero(node):
            value = filled(lo.e, value)
        chunks = (None if chunk is None else lo.e(op, chunk, *rest) for chunk in value.chunks)
        return replace(value, chunks=tuple(chunks))
    if isinstance(value, torch.Tensor) and "dequantize" in str(op):
        return QuantizedConstant(value, op, tuple(rest))
    return lo.e(op, value, *rest)


def _keeps_zero(node: fx.Node) -> bool:
    """Whether a frame of zeros is one again behind this quantize op and the dequantize ops that alone read it.

    Between the two, such a frame is the zero-point, so nothing else may look there.
    """
    quantize: Any = node.args[0] if "dequantize" in str(node.target) else node
    if quantize.op != "call_function" or "quantize_per_tensor" not in str(quantize.target):
        return False
    zero_point, low, high = quantize.args[2:5]
    in_range = all(isinstance(x, int) for x in (zero_point, low, high)) and low <= zero_point <= high
    return in_range and all(
        "dequantize" in str(user.target) and user.args[1:] == quantize.args[1:] for user in quantize.users
    )


def _attribute(module: torch.nn.Module, path: str) -> torch.Tensor:
    *parents, name = path.split(".")
    for parent in parents:
        module = getattr(module, parent)
    tensor: torch.Tensor = getattr(module, name)
    return tensor.detach()


def _cut(clip: fx.Node) -> dict[fx.Node, int]:
    """Where a 5-D input is cut into frames, and along which axis: `{node: axis}`.

        clip [B,T,H,W,3] ─► cast ─► permute ─► * scale ─► conv3d [B,C,T,H,W]
                              └ cut here, along 1           └ its time is axis 2

    The axis is followed back from the first op that is not pointwise; the cut comes after a cast, which is one op on
    the whole clip. A wrong guess costs speed alone: a rule that wants another axis puts the frames together again.
    """
    if len(shape_of(clip)) != 5:
        return {}
    order = list(range(5))  # the input's axis that stands on each place
    cut = node = clip
    while len(users := [user for user in node.users if user.target is not _aten._assert_tensor_metadata.default]) == 1:
        node = users[0]
        if node.target is _aten.permute.default:
            dims: Any = node.args[1]
            order = [order[dim] for dim in dims]
        elif node.target is _aten._to_copy.default:
            cut = node if order == list(range(5)) else cut
        elif not is_pointwise(node.target):
            break
    return {cut: order[2]}


def _source(node: fx.Node) -> str:
    """`file:line` of the innermost frame of the user's code, or the module where that is torch's."""
    traces = [known.meta.get("stack_trace") for known in (node, *reversed(node.all_input_nodes))]
    places = re.findall(r'File "([^"]+)", line (\d+)', next(filter(None, traces), ""))
    own = [place for place in places if not place[0].startswith(str(Path(torch.__file__).parent))]
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    if modules and not own:  # torch's own layers alone, as in a Sequential
        return f"module {modules[-1][0]!r}"
    return ":".join(own[-1]) if own else "source unknown"


def _where(node: fx.Node) -> str:
    return f"{node.target} ({_source(node)}) cannot be lowered"
