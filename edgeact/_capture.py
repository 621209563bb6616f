"""From a network to the graph that targets get: captured, BatchNorm folded, behind a uint8 clip, in the asked form.

    model ─► torch.export ─► BN folded ─► uint8 clip, normalisation inside ─► [lowered to 2-D]
    fp32 rung                folded rung                                       lowered rung

Shapes: the network maps float `clip_BCTHW -> logits_BK`; the program a uint8 `clip_BTHWC` with B=1 to the same.
"""

import contextlib
import io
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeact.clip import ClipSpec, normalize, scale_and_offset
from edgeact.errors import InputError, ToolchainError
from edgeact.numerics import compare_outputs

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

__all__ = [
    "Call",
    "behind_uint8",
    "capture",
    "check_network",
    "eager",
    "fold",
    "lower_and_prove",
    "quiet_torchao",
    "round_weights_alone",
    "run_program",
]

Call = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # uint8 clip [1, T, H, W, 3] -> logits [1, K]

_EQUAL_DB = 90.0  # float32 sums in another order: 110 to 130 dB are usual; a wrong tap leaves less than 40


def check_network(model: "nn.Module", spec: ClipSpec) -> int:
    """Run `model` once on a black clip, in eval mode, and return its number of classes.

    Raises:
        InputError: It fails, or what it returns are not logits.
    """
    import torch

    training = model.training
    clip = torch.zeros(1, 3, spec.frames, spec.crop_height, spec.crop_width)
    try:
        with torch.inference_mode():
            found: object = model.eval()(clip)
    except Exception as exc:  # the user's own code may raise anything
        raise InputError(
            f"the network fails on a clip [B, C, T, H, W] of shape {tuple(clip.shape)}: {_in_a_line(exc)} "
            f"({_raised_at(exc)})"
        ) from exc
    finally:
        model.train(training)
    what = type(found).__name__
    if isinstance(found, torch.Tensor):
        if found.dtype == torch.float32 and found.ndim == 2 and len(found) == 1 and found.shape[1] > 0:
            return int(found.shape[1])
        what = f"a tensor of shape {tuple(found.shape)}, {str(found.dtype).removeprefix('torch.')}"
    raise InputError(
        f"the network maps a clip [B, C, T, H, W] of shape {tuple(clip.shape)} to {what}: it must return float32 "
        "logits [1, K], a score for each class and nothing else"
    )


def _raised_at(exc: Exception) -> str:
    """`file:line` of the innermost frame of the user's code."""
    frames = traceback.extract_tb(exc.__traceback__)[1:]
    own = [frame for frame in frames if "site-packages" not in Path(frame.filename).parts]
    place = (own or frames)[-1]
    return f"{place.filename}:{place.lineno}"


def _in_a_line(exc: Exception) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"{type(exc).__name__}: {lines[0]}" if lines else type(exc).__name__


def eager(module: "nn.Module", spec: ClipSpec) -> Call:
    """The PyTorch side: normalisation in numpy, the same one that a device without it in the graph would use."""
    import torch

    def call(clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = module(torch.from_numpy(normalize(clip, spec))).numpy()
        return logits

    return call


def run_program(program: "ExportedProgram | GraphModule") -> Call:
    """A program with the normalisation inside, run by PyTorch."""
    import torch

    module = program if isinstance(program, torch.fx.GraphModule) else program.module(check_guards=False)

    def call(clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = module(torch.from_numpy(clip)).numpy()
        return logits

    return call


@contextmanager
def _export_errors() -> Iterator[None]:
    """torch.export's failures in one line; they derive from many classes (UserError, Unsupported, RuntimeError …)."""
    said = io.StringIO()  # of a failure, torch also prints half a graph and logs
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stderr(said):
        # torch 2.13's own use of a class it deprecates, printed at every export
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
        try:
            yield
        except InputError:
            raise
        except Exception as exc:
            place = re.search(r'raised this error:\s+File "(.+)", line (\d+)', str(exc))
            at = f" ({place[1]}:{place[2]})" if place else ""
            raise ToolchainError(
                f"torch.export cannot capture this network: {_in_a_line(exc)}{at}; "
                "its forward must not depend on the values of tensors"
            ) from exc
        finally:
            logging.disable(logging.NOTSET)
    sys.stderr.write(said.getvalue())


@contextmanager
def quiet_torchao() -> Iterator[None]:
    """Torchao logs which of its GPU libraries it does not find, and warns of its own deprecated calls."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def capture(model: "nn.Module", spec: ClipSpec, *, any_batch: bool = False) -> "GraphModule":
    """The network's ATen graph, as authored: float `clip_BCTHW` -> `logits_BK`, with B=1 or any.

    Raises:
        ToolchainError: torch.export cannot capture the network.
    """
    import torch

    clip = torch.zeros(2 if any_batch else 1, 3, spec.frames, spec.crop_height, spec.crop_width)
    free = ({0: torch.export.Dim("batch")},) if any_batch else None
    with _export_errors(), torch.no_grad():
        graph: GraphModule = torch.export.export(model.eval(), (clip,), dynamic_shapes=free).module(check_guards=False)
    return graph


def fold(model: "nn.Module", spec: ClipSpec, *, any_batch: bool = False, int8: bool = False) -> "GraphModule":
    """The network's ATen graph with BatchNorm folded: float `clip_BCTHW` -> `logits_BK`, with B=1 or any.

    For `int8`, what cannot be folded is a convolution.

    Raises:
        ToolchainError: torch.export cannot capture the network.
    """
    import torch

    from edgeact.quantize.batch_norm import as_convolutions, fold_batch_norm

    graph = capture(model, spec, any_batch=any_batch)
    with _export_errors(), torch.no_grad():
        fold_batch_norm(graph)
        if int8:
            as_convolutions(graph)
        _drop_idle_ops(graph)
        _pad_before_averages(graph)
    return graph


def _drop_idle_ops(graph: "GraphModule") -> None:
    """What gives its input as it is: `x[:]`, an alias or, of a free batch, a slice of all; `x.to(x.dtype)`."""
    import torch

    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:  # that a cast reads what it did at the capture
            graph.graph.erase_node(node)
            continue
        whole = node.target is aten.slice.Tensor and node.args[2:] == (0, sys.maxsize)
        cast = getattr(node.target, "overloadpacket", None) is aten.to
        same = cast and node.meta["val"].dtype == node.args[0].meta["val"].dtype
        if whole or same or node.target is aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()


def _pad_before_averages(graph: "GraphModule") -> None:
    """An average over padding as a padding and an average.

    Runtimes give the pooling itself to slower kernels, and OpenVINO pads int8 with the integer 0 instead of the zero
    point, silently.
    """
    import torch

    aten = torch.ops.aten
    dims = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
    for node in list(graph.graph.nodes):
        if node.target not in dims:
            continue
        defaults: tuple[Any, ...] = (None, None, [], 0, False, True)
        arguments: list[Any] = [*node.args, *defaults[len(node.args) :]]
        x, kernel, stride, padding, ceil, counted, *divisor = arguments
        padding = list(padding) if isinstance(padding, list | tuple) else [padding]
        if not any(padding) or ceil or not counted:
            continue
        each = padding * dims[node.target] if len(padding) == 1 else padding
        sides = [side for pad in reversed(each) for side in (pad, pad)]
        with graph.graph.inserting_before(node):
            padded = graph.graph.call_function(aten.constant_pad_nd.default, (x, sides))
        padded.meta = dict(node.meta) | {"val": aten.constant_pad_nd.default(x.meta["val"], sides)}
        node.args = (padded, kernel, stride or kernel, [0] * len(padding), False, True, *divisor)
    graph.recompile()


def behind_uint8(network: "GraphModule", spec: ClipSpec) -> "ExportedProgram":
    """`network` behind a uint8 `clip_BTHWC` input, normalisation inside: equal to `network(normalize(clip, spec))`.

    The layers keep their names and their lines in the user's source.
    """
    import torch
    from torch import fx

    class Uint8Input(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            scale, offset = (torch.from_numpy(array).view(3, 1, 1, 1) for array in scale_and_offset(spec))
            self.network = network
            self.scale = torch.nn.Buffer(scale)
            self.offset = torch.nn.Buffer(offset)

        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            x_BCTHW = clip.float().permute(0, 4, 1, 2, 3) * self.scale + self.offset
            with fx.traceback.preserve_node_meta():  # which an Interpreter hands on, and a plain call does not
                logits_BK: torch.Tensor = fx.Interpreter(self.network).run(x_BCTHW)
            return logits_BK

    with _export_errors(), torch.no_grad():
        return torch.export.export(Uint8Input(), (torch.zeros((1, *spec.clip_shape), dtype=torch.uint8),))


def _unrounded(program: "ExportedProgram") -> "GraphModule":
    """`program` without the rounding of its activations: what the float sums of both sides can be compared by.

    An int8 program in another form rounds a few values to the next level, and each layer passes that on.
    """
    import torch

    module = program.module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    return round_weights_alone(module)


def round_weights_alone(module: "GraphModule") -> "GraphModule":
    """`module`, changed: an int8 network whose activations are not rounded; weights and their scales stay."""
    for node in module.graph.nodes:
        dequantizes = str(node.target).startswith("quantized_decomposed.dequantize_per_tensor")
        stored: Any = node.args[0] if dequantizes else None
        if stored is not None and stored.op == "call_function":  # not a constant
            node.replace_all_uses_with(stored.args[0])
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def lower_and_prove(program: "ExportedProgram", form: str, clip: NDArray[np.uint8]) -> "ExportedProgram":
    """`program` in `form`, after it gave the same logits on clips that differ in what could go wrong.

    Args:
        program: uint8 `clip_BTHWC` -> `logits_BK`, volumetric.
        form: volumetric (nothing is done), folded or unrolled.
        clip: A real clip `[1, T, H, W, 3]`; it is also tried reversed and with one frame repeated, beside noise and
            black, where padding and biases are all there is. Of an int8 program the arithmetic is compared without the
            rounding of activations, which is measured by the report's rungs.

    Raises:
        LoweringError: The network holds an op that has no 2-D form.
        ToolchainError: The lowered network is not equal to the original.
    """
    if form == "volumetric":
        return program
    from edgeact.lowering import lower

    lowered = lower(program, form=form)  # type: ignore[arg-type]
    noise = np.random.default_rng(0).integers(0, 256, clip.shape, dtype=np.uint8)
    still = np.ascontiguousarray(np.broadcast_to(clip[:, :1], clip.shape))
    clips = {"real": clip, "reversed": clip[:, ::-1].copy(), "still": still, "noise": noise, "black": clip * 0}
    original, rewritten = run_program(_unrounded(program)), run_program(_unrounded(lowered))
    for name, case in clips.items():
        sqnr_db, max_abs, _ = compare_outputs(original(case), rewritten(case))
        if not sqnr_db >= _EQUAL_DB:
            raise ToolchainError(
                f"the {form} form is not equal to the network: {sqnr_db:.1f} dB on a {name} clip (max {max_abs:.2e}); "
                f"{_EQUAL_DB:.0f} dB is float rounding; this is a defect of edgeact's lowering, please report it"
            )
    return lowered
