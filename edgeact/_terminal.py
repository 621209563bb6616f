"""What the tables on a terminal share; rich arrives when one is printed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["add_row", "new_table", "plain", "print_line"]


def print_line(console: "Console", mark: str, text: str, style: str) -> None:
    """A remark after its mark, in a column of its own, so that the text hangs when it wraps."""
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 1))
    row.add_row(Text(f"  {mark}", style), Text(plain(text), style, overflow="fold"))
    console.print(row)


def new_table(*columns: str) -> "Table":
    """A table with a line below the header; figures stand to the right, names and remarks to the left."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 1), header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or column == "" else "right", overflow="fold")
    return table


def add_row(table: "Table", *cells: object) -> None:
    """A row of plain text: rich would take the brackets of a name for markup, and fail where they do not match."""
    from rich.text import Text

    table.add_row(*(Text(plain(cell)) for cell in cells))


def plain(text: object) -> str:
    """Text for a terminal: names of files and labels may hold escape sequences."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))
