"""`edgeact validate`: judge a bundle on this machine, without PyTorch."""

from pathlib import Path
from typing import Any, Literal

import click

from edgeact.cli._options import gate_options, make_gates, print_report
from edgeact.errors import InputError

__all__ = ["command"]


@click.command("validate")
@click.argument("bundle")
@click.option("--data", help="The evaluation set of the export.  [default: none; motion where it was motion]")
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

    Needs neither PyTorch nor the checkpoint. Exits with 1 when it falls short of a gate.
    """
    from edgeact.bundle import open_bundle
    from edgeact.validate import stored_gates, validate

    if given["min_speedup"] is not None:
        raise InputError(
            "--min-speedup compares with PyTorch, which validate does without: give it to `edgeact export`"
        )
    opened = open_bundle(bundle)
    gates = make_gates(stored_gates(opened), given)
    on_corrupt: Literal["skip", "error"] = "skip" if skip_corrupt else "error"
    report = validate(opened, data=data, gates=gates, on_corrupt=on_corrupt, progress=not quiet, **given)
    if html is not None:
        from edgeact.report import write_html

        write_html(report, Path(html))
    return print_report(report, as_json=as_json, html=Path(html) if html is not None else None)
