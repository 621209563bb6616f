"""`edgeact compile`: a bundle's engine for this machine."""

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeact.compile import Compiled

__all__ = ["command"]


@click.command("compile")
@click.argument("bundle")
@click.option("--force", is_flag=True, help="Compile even where there is an engine for this machine.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads.  [default: every core]")
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True, help="Latency rounds.")
@click.option("--workspace-mb", type=click.IntRange(1), help="Of jetson: most memory of a kernel.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="Say nothing while it compiles.")
def command(bundle: str, as_json: bool, quiet: bool, **given: Any) -> int:
    """Compile BUNDLE for this machine, where its target compiles on the device, and prove the engine.

    The engine stays in the cache. Exits with 1, and keeps nothing, when its logits fall short of the bundle's gate.
    """
    from edgeact.compile import compile_bundle

    if not quiet:
        click.echo(f"compiling {bundle} for this machine: this can take minutes", err=True)
    found = compile_bundle(bundle, **given)
    if as_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        _print(found)
    return 0 if found.held else 1


def _print(found: "Compiled") -> None:
    from edgeact._format import db, ms
    from edgeact._terminal import plain
    from edgeact.placement import Placement

    built, latency = found.stamp["built"], found.latency
    p50, p95, _ = latency.artifact_p50_p95_p99_ms
    click.echo("✓ held" if found.held else "✗ fell short, the engine was removed")
    for failure in found.failures:
        click.echo(f"  ✗ {plain(failure)}")
    rows = {"engine": found.engine, "compiled": found.stamp["date"].replace("T", " ").replace("+00:00", " UTC")}
    rows |= {name: str(value) for name, value in found.stamp["machine"].items()}
    rows |= {name: str(value) for name, value in found.stamp["settings"].items()}
    for name, figures in built.get("candidates", {}).items():
        why = f"left out: {figures['failed']}" if "failed" in figures else ""
        chosen = "chosen, " if name == built["chosen"] else ""
        rows[name] = why or f"{chosen}{ms(figures['median_ms'])}, {db(figures['sqnr_db'])}"
    rows["SQNR"] = f"{db(found.numerics.sqnr_db)} on {found.numerics.rungs[-1].clips} golden clips"
    rows["latency"] = f"p50 {ms(p50)}, p95 {ms(p95)}; {latency.runtime}; {latency.threads} threads"
    where = found.placement
    rows["placement"] = (
        f"{where.accelerated_ops:,} layers, {where.fallback_ops} fall back"
        if isinstance(where, Placement)
        else f"not measured: {where.not_measured}"
    )
    width = max(map(len, rows))
    for name, text in rows.items():
        click.echo(f"  {name:<{width}}  {plain(text)}")
    for note in found.notes:
        click.echo(f"  · {plain(note)}")
