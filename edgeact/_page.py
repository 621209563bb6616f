"""What every HTML page shares: its templates, how numbers are written in it, and how the file is."""

import os
from importlib import resources
from pathlib import Path
from typing import Any

from edgeact._format import db, mb, ms, p_value, pct, signed, thread_count
from edgeact.errors import InputError, MissingDependencyError

__all__ = ["check_page", "render_page", "write_page"]

_FILTERS = {"pct": pct, "ms": ms, "mb": mb, "db": db, "p": p_value, "signed": signed, "threads": thread_count}


def check_page(path: str | os.PathLike[str]) -> Path:
    """Refuse a page that could not be made, before hours of work.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
        InputError: It is a folder, or its folder is missing or cannot be written to.
    """
    for package in ("jinja2", "matplotlib"):
        try:
            __import__(package)
        except ImportError as exc:
            raise MissingDependencyError(package, "report", "an HTML page") from exc
    file = Path(path)
    if file.is_dir():
        raise InputError(f"--html {file} is a folder: give a file, such as {file / 'page.html'}")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"--html {file}: the folder {file.parent} does not exist, or cannot be written to")
    return file


def render_page(template: str, **values: Any) -> str:
    """One of the templates beside this file as text; every value is escaped but our own SVG.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as exc:
        raise MissingDependencyError("jinja2", "report", "an HTML report") from exc
    templates = resources.files("edgeact")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: templates.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    return environment.get_template(template).render(values)


def write_page(path: Path, page: str) -> None:
    """Write it beside `path` first, and rename it when whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(page, encoding="utf-8", errors="replace")  # the name of a folder may be no Unicode
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
