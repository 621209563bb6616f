"""`edgeact validate`: judge a bundle on this machine or by a device's results, without PyTorch."""

from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

from edgeact.cli._options import gate_options, make_gates, print_report
from edgeact.errors import InputError

__all__ = ["command"]

_HOW_TO_RUN = ("data", "threads", "rounds", "skip_corrupt")


@click.command("validate")
@click.argument("bundle")
@click.option("--data", help="The evaluation set of the export.  [default: none; motion where it was motion]")
@click.option("--results", metavar="FILE", help="Judge this results.json of a device, instead of running here.")
@click.option("--html", metavar="FILE", help="Write the report as one HTML page.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads.  [default: every core]")
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True, help="Latency rounds.")
@click.option("--skip-corrupt", is_flag=True, help="Skip and list videos that cannot be used, instead of failing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@gate_options
def command(
    bundle: str, data: str | None, html: str | None, skip_corrupt: bool, as_json: bool, quiet: bool, **given: Any
) -> int:
    """Judge BUNDLE on this machine: decoding, logits, accuracy and latency against what its export stored.

    Needs neither PyTorch nor the checkpoint. Exits with 1 when it falls short of a gate. With --results nothing is run:
    the file holds what a program measured on a device (its format: results.schema.json in the package).
    """
    from edgeact.bundle import open_bundle
    from edgeact.validate import stored_gates, validate

    if given["min_speedup"] is not None:
        raise InputError(
            "--min-speedup compares with PyTorch, which validate does without: give it to `edgeact export`"
        )
    if given["results"] is not None:
        _refuse_how_to_run()
    opened = open_bundle(bundle)
    gates = make_gates(stored_gates(opened), given)
    on_corrupt: Literal["skip", "error"] = "skip" if skip_corrupt else "error"
    report = validate(opened, data=data, gates=gates, on_corrupt=on_corrupt, progress=not quiet, **given)
    if html is not None:
        from edgeact.report import write_html

        write_html(report, Path(html))
    return print_report(report, as_json=as_json, html=Path(html) if html is not None else None)


def _refuse_how_to_run() -> None:
    """Refuse what says how to run the bundle here, where results were measured elsewhere.

    Raises:
        InputError: Something was given that says so.
    """
    context = click.get_current_context()
    for name in _HOW_TO_RUN:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            raise InputError(
                f"{option} says how to run the bundle here, --results FILE was measured elsewhere: give one"
            )
