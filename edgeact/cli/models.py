"""`edgeact models`: what there is."""

import json

import click

__all__ = ["command"]


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the registered models with their paper's input."""
    from edgeact.cli._model import require_torch

    require_torch()
    from edgeact.models import default_spec, list_models

    specs = {name: default_spec(name) for name in list_models()}
    if as_json:
        click.echo(json.dumps([{"name": name, "spec": spec.to_dict()} for name, spec in specs.items()]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "input T×H×W", "sampling", box=None)
    for name, spec in specs.items():
        sampling = f"{spec.sample_fps:g} fps" if spec.sample_fps else f"every {spec.frame_stride}. frame"
        table.add_row(name, f"{spec.frames}×{spec.crop_height}×{spec.crop_width}", sampling)
    table.add_row("package.module:factory", "yours", "yours")
    Console().print(table)
