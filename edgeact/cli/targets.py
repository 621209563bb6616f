"""`edgeact targets`: what there is, what runs here, what to install for the rest."""

import json
from typing import Any

import click

__all__ = ["command"]


@click.command("targets")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the targets with their precisions, and whether this machine runs them, or an emulator or a proxy does."""
    from edgeact.runtime import cannot_run_here, emulation_here, is_installed
    from edgeact.targets import get_target, list_targets

    rows: list[dict[str, Any]] = []
    for name in list_targets():
        target = get_target(name)
        cannot = cannot_run_here(target.runtime)
        here = cannot is None and is_installed(target.runtime)
        stand_in = target.proxy if target.proxy and is_installed(target.proxy) else None
        extra = target.proxy or target.runtime
        rows.append(
            {
                "name": name,
                "summary": target.summary,
                "precisions": list(target.precisions),
                "forms": list(target.forms),
                "runs_here": here,
                "emulated": emulation_here(target.runtime) if here else None,
                "cannot_run": cannot,
                "proxy": None if here else stand_in,
                "install": None if here or stand_in or cannot else f"pip install 'edgeact[{extra}]'",
            }
        )
    if as_json:
        click.echo(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    from edgeact._terminal import add_row

    table = Table(box=None)
    for column in ("target", "for", "precisions", "forms", "here"):
        table.add_column(column, overflow="fold")
    for row in rows:
        status = row["cannot_run"] or row["install"] or f"{row['proxy']} as a proxy"
        if row["runs_here"]:
            status = "emulated" if row["emulated"] else "runs"
        add_row(table, row["name"], row["summary"], ", ".join(row["precisions"]), ", ".join(row["forms"]), status)
    Console().print(table)
