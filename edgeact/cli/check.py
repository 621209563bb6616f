"""`edgeact check`: what a target would make of a network, before any export."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from edgeact.cli._options import parse_options, spec_options, take_target_options, target_options

if TYPE_CHECKING:
    from rich.console import Console

    from edgeact.forecast import Forecast, Layer

__all__ = ["command"]

_STYLES = {"native": "green", "lowered": "green", "falls back": "yellow", "cannot run": "bold red"}


@click.command("check")
@click.option("--target", required=True, help="Where it must run: see `edgeact targets`.")
@click.option("--model", help="A name of `edgeact models`, or package.module:factory.")
@click.option("--checkpoint", metavar="FILE", help="Trained weights; the packaged checkpoint without --model.")
@click.option("--precision", help="fp32, fp16 or int8.  [default: fp32]")
@click.option("--form", help="How time is held: volumetric, folded or unrolled.  [default: the target's first]")
@target_options
@click.option("--data", help="Labelled videos, to count the classes of an untrained model.")
@click.option(
    "--option", "model_options", multiple=True, metavar="NAME=VALUE", help="Option of the model, as width=0.5."
)
@click.option("--num-classes", type=click.IntRange(1), help="Of an untrained model.  [default: 400, as Kinetics]")
@click.option("--max-fallback", type=click.IntRange(0), metavar="N", help="Most ops of the network that may fall back.")
@click.option("--json", "as_json", is_flag=True, help="Print every layer as JSON.")
@spec_options
def command(
    target: str, precision: str | None, form: str | None, max_fallback: int | None, as_json: bool, **given: Any
) -> int:
    """Say per layer whether a target takes it natively, after lowering, on a slow kernel, or not at all.

    Exits with 1 when a layer cannot run, or more fall back than --max-fallback allows.
    """
    from edgeact.cli._model import find_network
    from edgeact.forecast import forecast
    from edgeact.targets import check_form, check_options, check_precision

    check_form(target, form)
    if precision is not None:
        check_precision(target, precision)
    options = check_options(target, take_target_options(given), precision)
    network = find_network(
        name=given.pop("model"),
        checkpoint=given.pop("checkpoint"),
        options=parse_options(given.pop("model_options")),
        num_classes=given.pop("num_classes"),
        data=given.pop("data"),
        given=given,
    )
    found = forecast(network.model, target=target, spec=network.spec, form=form, options=options, precision=precision)
    if as_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        from rich.console import Console

        _print(found, network.name, Console())
    fallback = sum(layer.support == "falls back" for layer in found.layers)
    too_many = max_fallback is not None and fallback > max_fallback
    if too_many:
        click.echo(f"ops that fall back: {fallback}; --max-fallback allows {max_fallback}", err=True)
    return 0 if found.runs and not too_many else 1


def _print(found: "Forecast", model: str, console: "Console") -> None:
    """The layers that compute or that something stands against, the reasons once each, and the sum."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from edgeact._terminal import plain

    shown = [layer for layer in found.layers if layer.macs or layer.support in ("falls back", "cannot run")]
    table = Table("layer", "op", "output", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("MMACs", justify="right")
    table.add_column(found.target)
    for layer in shown:
        shape = "×".join(map(str, layer.shape))
        support = Text(layer.support, _STYLES[layer.support])
        table.add_row(
            Text(plain(layer.name)), layer.op, shape, f"{layer.macs / 1e6:.1f}" if layer.macs else "", support
        )
    console.print(table)
    for reason, layers in _reasons(found.layers).items():
        ops = ", ".join(f"{op} ({count})" for op, count in Counter(layer.op for layer in layers).most_common())
        said = layers[0].support
        console.print(Text.assemble((said, _STYLES[said]), f" {ops}: {plain(reason)}"), soft_wrap=True)
    for note in found.notes:
        console.print(Text(f"· {plain(note)}", "dim"), soft_wrap=True)
    total, fast = found.macs(), found.macs("native", "lowered")
    if found.runs:
        verdict, style = "✓ runs", "bold green"
        share = (
            f"{fast / total:.2%} of {total / 1e9:.3f} GMACs on {found.target}'s fast kernels" if total else "no MACs"
        )
    else:
        verdict, style = "✗ cannot run", "bold red"
        share = f"{sum(layer.support == 'cannot run' for layer in shown)} of {len(found.layers)} ops have no kernel"
    console.print(Text.assemble((verdict, style), f"  {model} → {found.target}, {found.form}: {share}"), soft_wrap=True)


def _reasons(layers: "tuple[Layer, ...]") -> "dict[str, list[Layer]]":
    """Layers by what stands against them, those that are taken as they are left out."""
    reasons: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.reason:
            reasons.setdefault(layer.reason, []).append(layer)
    return reasons
