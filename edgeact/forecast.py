"""What a target would make of a network, before any export: layer by layer, with the rule behind every refusal.

volumetric graph ─► does the runtime take the op as it is?          native
     │ lowered
     ▼
2-D graph        ─► does it take every op that came of it?          lowered
                      no, but a slow kernel runs it                 falls back
                      no kernel at all, or it cannot be lowered     cannot run
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgeact._capture import behind_uint8, check_network, fold
from edgeact._macs import layer_of, macs_by_node
from edgeact.clip import ClipSpec
from edgeact.targets import Request, check_form, check_options, check_precision, get_target

if TYPE_CHECKING:
    from torch import fx, nn

    from edgeact.targets import Refusal, Target

__all__ = ["Forecast", "Layer", "Support", "forecast"]

Support = Literal["native", "lowered", "falls back", "cannot run"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One op of the network.

    Attributes:
        name: Path of its module in the user's model, such as `layer1.0.conv2`; empty for the model's own forward.
        op: ATen's name, such as `conv3d`.
        shape: Of its output, `[B, C, T, H, W]`.
        macs: Multiply-accumulates for one clip.
        support: What the target makes of it.
        reason: The runtime's rule with its source where `support` is not `native`, else empty.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    macs: int
    support: Support
    reason: str


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What `target` would make of a network in `form`."""

    target: str
    form: str
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether every layer has a kernel, fast or slow."""
        return all(layer.support != "cannot run" for layer in self.layers)

    def macs(self, *supports: Support) -> int:
        """Multiply-accumulates of the layers with one of these, or of all."""
        return sum(layer.macs for layer in self.layers if not supports or layer.support in supports)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        sums = {"macs": self.macs(), "accelerated_macs": self.macs("native", "lowered")}
        return dataclasses.asdict(self) | {"runs": self.runs} | sums


def forecast(
    model: "nn.Module",
    *,
    target: str,
    spec: ClipSpec,
    form: str | None = None,
    options: Mapping[str, str] | None = None,
    precision: str | None = None,
) -> Forecast:
    """Ask a target about every layer of `model`; nothing is compiled or written.

    Args:
        model: Float `clip_BCTHW -> logits_BK`; it is put in eval mode on the CPU.
        target: One of `list_targets()`.
        spec: How a video becomes a clip: the shapes.
        form: One of the target's forms of time; the first of them by default.
        options: Options of the target.
        precision: One of the target's precisions; fp32, or the first of them, by default.

    Raises:
        InputError: There is no such target, form or option, or no forecast for it, or the network does not map a clip
            to logits.
        ToolchainError: torch.export cannot capture the network.
    """
    from edgeact.lowering._lower import rewrite
    from edgeact.lowering._prepare import prepare

    asked = get_target(target)
    precision = precision or _usual_precision(asked, options or {})
    check_precision(target, precision)
    form, options = check_form(target, form), check_options(target, options or {}, precision)
    model = model.cpu().float().eval()
    check_network(model, spec)
    graph = prepare(behind_uint8(fold(model, spec), spec))
    found, notes = asked.refusals(graph, Request(precision, options))
    native = {node.name: refusal for node, refusal in found.items()}
    if form == "volumetric":
        refusals: Mapping[str, Refusal] = native
        refused: dict[fx.Node, str] = {}
    else:
        refused = {}
        lowered, _ = rewrite(graph, form, refused=refused)  # type: ignore[arg-type]
        found, notes = asked.refusals(lowered, Request(precision, options))
        refusals = _by_source(found)
    macs = macs_by_node(graph)
    layers = []
    for node in graph.graph.nodes:
        if node.op != "call_function" or getattr(node.target, "__name__", "") == "getitem":
            continue
        support, reason = _judge(node.name, native, refusals, refused.get(node))
        layers.append(
            Layer(
                name=layer_of(node),
                op=str(node.target).removeprefix("aten.").partition(".")[0],
                shape=tuple(getattr(node.meta.get("val"), "shape", ())),
                macs=macs[node],
                support=support,
                reason=reason,
            )
        )
    return Forecast(target=target, form=form, layers=tuple(layers), notes=notes)


def _usual_precision(asked: "Target", options: Mapping[str, str]) -> str:
    """Fp32, or the first precision that the target has with these options."""
    chosen = {name: values[0] for name, values in asked.options.items()} | dict(options)
    every = sorted(asked.precisions, key=lambda precision: precision != "fp32")
    return next((precision for precision in every if not asked.conflict(precision, chosen)), every[0])


def _judge(
    name: str, native: Mapping[str, "Refusal"], final: Mapping[str, "Refusal"], cannot_lower: str | None
) -> tuple[Support, str]:
    if cannot_lower is not None:
        return "cannot run", cannot_lower
    if name in final:
        return ("falls back" if final[name].runs else "cannot run"), final[name].reason
    if name in native:
        return "lowered", native[name].reason
    return "native", ""


def _by_source(refusals: Mapping["fx.Node", "Refusal"]) -> dict[str, "Refusal"]:
    """The worst refusal per op of the volumetric graph."""
    worst: dict[str, Refusal] = {}
    for node, refusal in refusals.items():
        source = node.meta.get("source", node.name)
        if source not in worst or (worst[source].runs and not refusal.runs):
            worst[source] = refusal
    return worst
