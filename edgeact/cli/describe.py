"""`edgeact describe`: a network's features as a compact descriptor of a video. Each part has its own file."""

import click

from edgeact.cli._describe_classify import classify
from edgeact.cli._describe_extract import extract
from edgeact.cli._describe_fit import fit

__all__ = ["command"]


@click.group("describe")
def command() -> None:
    """Describe videos by a few numbers: fit the descriptor, see how many numbers it takes, and extract them."""


for part in (fit, classify, extract):
    command.add_command(part)
