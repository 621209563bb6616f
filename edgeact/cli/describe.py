"""`edgeact describe`: a network's features as a compact descriptor of a video. Each part has its own file."""

import click

from edgeact.cli._describe_classify import classify
from edgeact.cli._describe_extract import extract
from edgeact.cli._describe_fit import fit
from edgeact.cli._describe_search import search

__all__ = ["command"]


@click.group("describe")
def command() -> None:
    """Describe videos by a few numbers: fit the descriptor, see how many it takes, extract them, and search."""


for part in (fit, classify, extract, search):
    command.add_command(part)
