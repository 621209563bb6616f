"""`edgeact export`: a network to a proven bundle."""

from typing import TYPE_CHECKING, Any, Literal

import click

from edgeact.cli._options import (
    calibration_options,
    compilation_options,
    gate_options,
    make_gates,
    parse_options,
    print_report,
    spec_options,
    take_calibration,
    take_compilation,
    take_target_options,
    target_options,
)

if TYPE_CHECKING:
    from edgeact.quantize.options import Int8
    from edgeact.quantize.state import QuantizedState

__all__ = ["command"]

_UNTRAINED_CLIPS = 24  # accuracy of untrained weights says nothing; numerics and latency need no more


@click.command("export")
@click.option("--target", required=True, help="Where it must run: see `edgeact targets`.")
@click.option("--model", help="A name of `edgeact models`, or package.module:factory.")
@click.option("--checkpoint", metavar="FILE", help="Trained weights; the packaged checkpoint without --model.")
@click.option("--descriptor", metavar="FILE", help="End the network in this descriptor of `edgeact describe fit`.")
@click.option("--unwhitened", is_flag=True, help="With --descriptor: PCA coordinates as they are, not of variance 1.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, fp16 or int8 (see `edgeact targets`).")
@click.option("--form", help="How time is held: volumetric, folded or unrolled.  [default: the target's first]")
@target_options
@click.option("--data", default="motion", show_default=True, help="Labelled videos; `motion` is the synthetic set.")
@click.option("--out", default="bundles", show_default=True, metavar="DIR", help="Folder of bundles.")
@click.option("--name", help="Name of the bundle.  [default: MODEL-TARGET-PRECISION]")
@click.option(
    "--option", "model_options", multiple=True, metavar="NAME=VALUE", help="Option of the model, as width=0.5."
)
@click.option(
    "--num-classes", type=click.IntRange(1), help="Classes of an untrained model.  [default: those of --data]"
)
@click.option("--clips", type=click.IntRange(1), help="Most clips to compare, even over the classes.  [default: all]")
@compilation_options
@calibration_options
@click.option(
    "--keep-float",
    metavar="N|auto|LAYER,…",
    help="Of int8: leave the N layers whose rounding costs most in float; auto takes as few as --max-drop and "
    "--min-agreement need on the validation clips; or name them, as stem,fc.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads.  [default: every core]")
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True, help="Latency rounds.")
@click.option("--skip-corrupt", is_flag=True, help="Skip and list videos that cannot be used, instead of failing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@spec_options
@gate_options
def command(
    target: str, precision: str, data: str, out: str, skip_corrupt: bool, quiet: bool, as_json: bool, **given: Any
) -> int:
    """Export a network for a target, prove it, and write a bundle.

    Exits with 1 when the exported model falls short of a gate: the bundle is kept as NAME-failed beside an older one
    that held, and its report says why.
    """
    from edgeact.cli._model import before_descriptor, end_in_descriptor, find_network
    from edgeact.errors import InputError
    from edgeact.evaluate import MOTION
    from edgeact.export import export
    from edgeact.parity import Gates
    from edgeact.targets import check_form, check_options, check_precision

    check_precision(target, precision)
    check_form(target, given["form"])
    given["options"] = take_target_options(given)
    check_options(target, given["options"], precision)
    given["compilation"] = take_compilation(given, progress=not quiet)
    descriptor, unwhitened = given.pop("descriptor"), given.pop("unwhitened")
    if unwhitened and descriptor is None:
        raise InputError("--unwhitened says how a descriptor is written: give --descriptor FILE too")
    gates = Gates.defaults(precision) if descriptor is None else Gates.for_descriptors(precision)
    gates = make_gates(gates, given)
    network = find_network(
        name=before_descriptor(given.pop("model"), descriptor),
        checkpoint=given.pop("checkpoint"),
        options=parse_options(given.pop("model_options")),
        num_classes=given.pop("num_classes"),
        data=data,
        given=given,
        progress=not quiet,
    )
    if descriptor is not None:
        network, given["described"] = end_in_descriptor(network, descriptor, whitened=not unwhitened)
    notes = network.notes
    int8 = _int8(given, precision, network.quantized)
    if network.quantized is not None and precision != "int8":
        notes += (f"the checkpoint was trained for int8: {precision} is the float network that it follows",)
    best = network.training.get("best")
    if network.quantized is not None and isinstance(best, dict) and best.get("epoch") == -1:
        notes += ("int8: no epoch of --qat came closer than calibration, whose weights and ranges these are",)
    if not network.training and data == MOTION and given["clips"] is None:
        given["clips"] = _UNTRAINED_CLIPS
        notes += (f"without training, {_UNTRAINED_CLIPS} clips of the motion set are compared; --clips takes more",)
    on_corrupt: Literal["skip", "error"] = "skip" if skip_corrupt else "error"
    bundle = export(
        network.model,
        target=target,
        spec=network.spec,
        precision=precision,
        data=data,
        out=out,
        labels=network.labels,
        model_name=network.name,
        facts={"options": dict(network.options), "training": dict(network.training), **network.facts},
        notes=notes,
        gates=gates,
        on_corrupt=on_corrupt,
        int8=int8,
        progress=not quiet,
        **given,
    )
    return print_report(bundle.report(), as_json=as_json, html=bundle.path / "report.html")


def _int8(given: dict[str, Any], precision: str, trained: "QuantizedState | None") -> "Int8 | None":
    """The options of int8, taken out of `given`."""
    from edgeact.errors import InputError
    from edgeact.quantize.options import Int8

    asked = {name: given.pop(name) for name in ("calibration_clips", "observer", "keep_float")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if precision != "int8":
        if asked:
            raise InputError(f"--{next(iter(asked)).replace('_', '-')} is of int8: leave it out of {precision}")
        return None
    if trained is not None and "observer" in asked:
        raise InputError("--observer calibrates, and the checkpoint holds the ranges of its training: leave it out")
    if (keep := asked.get("keep_float", "auto")) != "auto":
        if not all(keep.split(",")):
            raise InputError(f"--keep-float {keep!r}: give a number of layers, auto, or names of layers with commas")
        asked["keep_float"] = int(keep) if keep.removeprefix("-").isdecimal() else tuple(keep.split(","))
    sized = "calibration_clips" in asked
    int8 = Int8(calibration=take_calibration(asked), **asked, trained=trained)
    if trained is not None and sized and not int8.ranks_layers:
        raise InputError("--calibration-clips: the checkpoint holds the ranges of its training: leave it out")
    return int8
