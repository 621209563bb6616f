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
        stand_in = target.proxy if target.proxy and is_installed(target.proxy) else None
        rows.append(
            {
                "name": name,
                "summary": target.summary,
                "precisions": list(target.precisions),
                "forms": list(target.forms),
                "runs_here": here,
                "proxy": None if here else stand_in,
                "install": None if here or stand_in else f"pip install 'edgeact[{target.proxy or target.runtime}]'",
            }
        )
    if as_json:
        click.echo(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("target", "for", "precisions", "forms", "here", box=None)
    for row in rows:
        status = "runs" if row["runs_here"] else str(row["install"] or f"{row['proxy']} as a proxy")
        table.add_row(row["name"], row["summary"], ", ".join(row["precisions"]), ", ".join(row["forms"]), status)  # type: ignore[arg-type]
    Console().print(table)
