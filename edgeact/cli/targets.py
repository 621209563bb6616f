"""`edgeact targets`: what there is, what runs here, what to install for the rest."""

import json

import click

__all__ = ["command"]


@click.command("targets")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the targets with their precisions, and whether their runtime is installed here."""
    from edgeact.runtime import is_installed
    from edgeact.targets import get_target, list_targets

    rows = []
    for name in list_targets():
        target = get_target(name)
        here = is_installed(target.runtime)
        rows.append(
            {
                "name": name,
                "summary": target.summary,
                "precisions": list(target.precisions),
                "forms": list(target.forms),
                "runs_here": here,
                "install": None if here else f"pip install 'edgeact[{target.runtime}]'",
            }
        )
    if as_json:
        click.echo(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("target", "for", "precisions", "forms", "here", box=None)
    for row in rows:
        status = "runs" if row["runs_here"] else str(row["install"])
        table.add_row(row["name"], row["summary"], ", ".join(row["precisions"]), ", ".join(row["forms"]), status)  # type: ignore[arg-type]
    Console().print(table)
