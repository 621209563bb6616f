"""Options that several verbs share, and what they make: a ClipSpec, a Report on stdout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeact._vendor_compiler import Compilation
from edgeact.clip import ClipSpec
from edgeact.errors import InputError
from edgeact.parity import Gates, Report
from edgeact.quantize.options import Calibration

__all__ = [
    "calibration_options",
    "compilation_options",
    "gate_options",
    "make_gates",
    "make_spec",
    "parse_options",
    "print_report",
    "spec_options",
    "take_calibration",
    "take_compilation",
    "take_target_options",
    "target_options",
]

Function = TypeVar("Function", bound=Callable[..., Any])


def _apply(options: list[Any]) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


spec_options = _apply(
    [
        click.option("--frames", type=int, help="Frames of a clip."),
        click.option("--stride", type=int, help="Take every k-th frame of the video."),
        click.option("--fps", type=float, help="Take frames at this rate, by their timestamps (replaces --stride)."),
        click.option("--short-side", type=int, help="Resize the shorter side to this many pixels."),
        click.option("--crop", metavar="HxW", help="Centre crop in pixels: 112 or 112x112."),
        click.option("--mean", metavar="R,G,B", help="Per-channel mean, on the scale 0..1."),
        click.option("--std", metavar="R,G,B", help="Per-channel standard deviation, on the scale 0..1."),
    ]
)

target_options = _apply(
    [
        click.option("--backend", help="Of android: xnnpack (CPU) or vulkan (GPU).  [default: xnnpack]"),
        click.option("--jetpack", help="Of jetson: the release on the device, 5.1, 6.0, 6.1 or 6.2.  [default: 6.2]"),
        click.option("--dla", is_flag=True, help="Of jetson: for the DLA instead of the GPU; fp16."),
        click.option("--deployment", help="Of coreml: the oldest system, iOS17, iOS18 or iOS26.  [default: iOS17]"),
        click.option("--config", help="Of ethos_u: the NPU, as ethos-u55-128.  [default: ethos-u85-256]"),
        click.option("--system-config", help="Of ethos_u: clock and memories, by Vela's name.  [default: by --config]"),
        click.option("--memory-mode", help="Of ethos_u: what lies where, by Vela's name.  [default: by --config]"),
        click.option("--npu", help="Of litert in int8: hold it against google-tensor, mediatek or qualcomm."),
        click.option("--soc", help="Of qualcomm, or of litert with --sdk: the chip, as SM8550.  [default: SM8650]"),
        click.option(
            "--activations",
            help="Of int8: on qualcomm int8 or int16, on coreml float16 or int8.  [default: the first of them]",
        ),
    ]
)

calibration_options = _apply(
    [
        click.option(
            "--calibration-clips",
            type=click.IntRange(1),
            help="Of int8: most clips of the training part that give the ranges.  [default: 256]",
        ),
        click.option(
            "--observer",
            help="Of int8: how a range follows from them: mse, percentile, min-max, or auto, which takes the one that "
            "loses least.  [default: auto]",
        ),
    ]
)

compilation_options = _apply(
    [
        click.option(
            "--compile-limit",
            type=click.FloatRange(min=0, min_open=True),
            metavar="MINUTES",
            help="Stop a vendor's compiler after this long.  [default: 60]",
        ),
        click.option("--sdk", type=click.Path(path_type=Path), help="A vendor's SDK, of a target that can use one."),
    ]
)

gate_options = _apply(
    [
        click.option("--min-sqnr", type=float, metavar="DB", help="Lowest SQNR against the reference, in dB."),
        click.option("--min-agreement", type=float, metavar="SHARE", help="Lowest share of clips with the same top-1."),
        click.option("--max-drop", type=float, metavar="PT", help="Most top-1 points that may be lost."),
        click.option("--max-fallback", type=int, metavar="N", help="Most compute ops outside the fast kernels."),
        click.option("--min-speedup", type=float, metavar="X", help="Lowest speed-up against PyTorch eager (export)."),
        click.option(
            "--min-cosine", type=float, metavar="C", help="Of descriptors: lowest cosine with the reference's."
        ),
        click.option(
            "--min-neighbours", type=float, metavar="SHARE", help="Of descriptors: of ten nearest clips in common."
        ),
        click.option("--require-all", is_flag=True, default=None, help="What was not measured is a failure."),
    ]
)


def make_spec(base: ClipSpec, given: dict[str, Any] | ClipSpec) -> ClipSpec:
    """`base` with what the command line gave; takes the `spec_options` out of `given`. A ClipSpec is the answer."""
    if isinstance(given, ClipSpec):
        return given
    names = {"frames": "frames", "stride": "frame_stride", "fps": "sample_fps", "short_side": "short_side"}
    fields = base.to_dict()
    taken = {option: given.pop(option) for option in ("frames", "stride", "fps", "short_side", "crop", "mean", "std")}
    for option, name in names.items():
        if taken[option] is not None:
            fields[name] = taken[option]
    if taken["stride"] is not None and taken["fps"] is None:
        fields["sample_fps"] = None
    if taken["stride"] is not None and taken["fps"] is not None:
        raise InputError("--stride and --fps are two ways to sample one video: give one of them")
    if taken["crop"] is not None:
        height, _, width = taken["crop"].partition("x")
        if not height.isdecimal() or not (width.isdecimal() or not width):
            raise InputError(f"--crop {taken['crop']!r}: write 112 or 112x160 (height x width, in pixels)")
        fields["crop_height"], fields["crop_width"] = int(height), int(width or height)
    for name in ("mean", "std"):
        if taken[name] is not None:
            try:
                fields[name] = [float(value) for value in taken[name].split(",")]
            except ValueError as exc:
                raise InputError(f"--{name} {taken[name]!r}: write three numbers, as 0.45,0.45,0.45") from exc
    return ClipSpec.from_dict(fields)


def take_target_options(given: dict[str, Any]) -> dict[str, str]:
    """Those of the `target_options` that were given; they are taken out of `given`."""
    names = ("backend", "jetpack", "npu", "soc", "activations", "deployment", "config", "system_config", "memory_mode")
    taken = {name: given.pop(name) for name in names}
    taken["accelerator"] = "dla" if given.pop("dla") else None
    return {name: value for name, value in taken.items() if value is not None}


def take_compilation(given: dict[str, Any], *, progress: bool) -> Compilation:
    """From the `compilation_options`; they are taken out of `given`."""
    minutes, sdk = given.pop("compile_limit"), given.pop("sdk")
    limit = {} if minutes is None else {"time_limit_s": 60 * minutes}
    return Compilation(**limit, sdk=sdk, progress=progress)


def take_calibration(asked: dict[str, Any]) -> Calibration:
    """From those of the `calibration_options` that were `asked` for; they are taken out of it."""
    names = {"calibration_clips": "clips", "observer": "observer"}
    return Calibration(**{field: asked.pop(option) for option, field in names.items() if option in asked})


def make_gates(base: Gates, given: dict[str, Any]) -> Gates:
    """`base` with what the command line gave; takes the `gate_options` out of `given`."""
    names = {
        "min_sqnr": "min_sqnr_db",
        "min_agreement": "min_agreement",
        "max_drop": "max_drop_pt",
        "max_fallback": "max_fallback",
        "min_speedup": "min_speedup",
        "min_cosine": "min_cosine",
        "min_neighbours": "min_neighbours",
        "require_all": "require_all",
    }
    fields = {field: getattr(base, field) for field in names.values()}
    for option, field in names.items():
        value = given.pop(option)
        if value is not None:
            fields[field] = value
    return Gates(**fields)


def parse_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`("width=0.5", "version=v2")` to a dictionary; values are JSON where they parse as such, else text."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"--option {pair!r}: write it as name=value, such as width=0.5")
        if key == "num_classes":
            raise InputError(f"--option {pair!r}: the data or --num-classes say how many classes there are")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options


def print_report(report: Report, *, as_json: bool, html: Path | None) -> int:
    """The report on stdout, and the exit status it stands for: 0 held, 1 fell short."""
    if as_json:
        click.echo(json.dumps(report.to_dict()))
    else:
        from rich.console import Console

        from edgeact._terminal import plain
        from edgeact.report import print_table

        console = Console()
        print_table(report, console)
        console.print(f"bundle  {plain(report.bundle)}", soft_wrap=True, highlight=False, markup=False)
        if html is not None:
            console.print(f"report  {plain(html)}", soft_wrap=True, highlight=False, markup=False)
    return 0 if report.held else 1
