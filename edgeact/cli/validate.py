"""`edgeact validate`: judge a bundle on this machine or by a device's results, without PyTorch."""

from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

from edgeact.cli._options import gate_options, make_gates, print_report
from edgeact.errors import InputError

__all__ = ["command"]

_HOW_TO_RUN = ("data", "device", "threads", "rounds", "minutes", "skip_corrupt")
_HOW_TO_REACH = ("python", "ssh_config", "keep")


@click.command("validate")
@click.argument("bundle")
@click.option("--data", help="The evaluation set of the export.  [default: none; motion where it was motion]")
@click.option("--results", metavar="FILE", help="Judge this results.json of a device, instead of running here.")
@click.option("--device", metavar="ssh://[USER@]HOST[:PORT]", help="Run it on this device, over ssh, instead of here.")
@click.option("--python", help="With --device: the Python there that has the runtime.  [default: python3]")
@click.option("--ssh-config", metavar="FILE", help="With --device: read in place of ~/.ssh/config.")
@click.option("--keep", is_flag=True, help="With --device: leave the copy there; the next run copies what changed.")
@click.option("--html", metavar="FILE", help="Write the report as one HTML page.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads.  [default: every core]")
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True, help="Latency rounds.")
@click.option("--minutes", type=float, help="Then run back to back for that long, with the sensors.  [default: no]")
@click.option("--skip-corrupt", is_flag=True, help="Skip and list videos that cannot be used, instead of failing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@gate_options
def command(
    bundle: str, data: str | None, html: str | None, skip_corrupt: bool, as_json: bool, quiet: bool, **given: Any
) -> int:
    """Judge BUNDLE on this machine: decoding, logits, accuracy and latency against what its export stored.

    Needs neither PyTorch nor the checkpoint. Exits with 1 when it falls short of a gate. With --device it is copied to
    a device and measured there, where numpy, PyAV and the bundle's runtime must be installed. With --results nothing is
    run: the file holds what a program measured on a device (its format: results.schema.json in the package).
    """
    from edgeact.bundle import open_bundle
    from edgeact.validate import stored_gates, validate

    if given["min_speedup"] is not None:
        raise InputError(
            "--min-speedup compares with PyTorch, which validate does without: give it to `edgeact export`"
        )
    _refuse_contradictions(given["results"], given["device"])
    opened = open_bundle(bundle)
    gates = make_gates(stored_gates(opened), given)
    on_corrupt: Literal["skip", "error"] = "skip" if skip_corrupt else "error"
    given |= {"data": data, "on_corrupt": on_corrupt, "progress": not quiet}
    reach = {name: given.pop(name) for name in ("device", *_HOW_TO_REACH)}
    if reach["device"] is not None:
        from edgeact.device import measure_on

        del given["results"]
        python = reach.pop("python") or "python3"
        given = {"results": measure_on(reach.pop("device"), opened, python=python, **reach, **given)}
    report = validate(opened, gates=gates, **given)
    if html is not None:
        from edgeact.report import write_html

        write_html(report, Path(html))
    return print_report(report, as_json=as_json, html=Path(html) if html is not None else None)


def _refuse_contradictions(results: str | None, device: str | None) -> None:
    """Refuse what says how to run the bundle where results were measured before, and how to reach no device.

    Raises:
        InputError: Something was given that says so.
    """
    context = click.get_current_context()
    asked = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    for name in asked:
        option = "--" + name.replace("_", "-")
        if results is not None and name in _HOW_TO_RUN:
            where = "here" if name != "device" else "there"
            raise InputError(
                f"{option} says how to run the bundle {where}, --results FILE was measured elsewhere: give one"
            )
        if device is None and name in _HOW_TO_REACH:
            raise InputError(f"{option} says how to reach a device: give --device ssh://user@host too")
