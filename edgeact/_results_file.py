"""A results.json as JSON: of a sane size, of finite numbers, of the schema's shape. It may come from anyone."""

import json
import math
import re
import stat
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from edgeact.bundle import Bundle
from edgeact.errors import InputError

__all__ = ["check_schema", "most_bytes", "parse"]

_LEAST_BYTES = 8 << 20  # of a limit: timed runs, windows, kernels and notes
_BYTES_PER_NUMBER, _BYTES_PER_CLIP = 40, 1024  # a double with indentation; an id, a digest and what stands around them
_BYTES_WITHOUT_BUNDLE = 256 << 20
_MESSAGE_CHARACTERS = 240
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def most_bytes(bundle: Bundle | None) -> int:
    """More bytes than any results of this bundle need; without one, than any that people compare."""
    if bundle is None:
        return _BYTES_WITHOUT_BUNDLE
    clips = len(bundle.reference().ids) + len(bundle.golden())
    return _LEAST_BYTES + clips * (_BYTES_PER_CLIP + _BYTES_PER_NUMBER * bundle.outputs)


def parse(file: Path, most: int) -> Any:
    """The JSON in `file`, of at most `most` bytes.

    Raises:
        InputError: There is no such file, it is larger, no JSON, or holds a number that is not finite or text that
            cannot be written.
    """
    if (what := _not_a_file(file)) is not None:
        raise InputError(f"results {file} is {what}: give the results.json that a program wrote on the device")
    if file.stat().st_size > most:
        raise InputError(f"{file} has {file.stat().st_size} bytes: results of this bundle take at most {most}")
    try:
        text = file.read_text(encoding="utf-8")
        fields = json.loads(text, parse_float=_finite, parse_int=_integer, parse_constant=_finite)
        _refuse_surrogates(text, fields)
        return fields
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{file} is no results.json: {exc}") from exc


def _not_a_file(file: Path) -> str | None:
    """What is there in place of a file; a pipe would be read without end, and a device has no size."""
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the name
        return "a link to nothing" if file.is_symlink() else "not there"
    except OSError as exc:  # links in a circle, folders that may not be entered
        return f"not a file that can be opened ({exc.strerror})"
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        return "a folder"
    return f"{'a pipe' if stat.S_ISFIFO(mode) else 'a device or a socket'}, not a regular file"


def _refuse_surrogates(text: str, fields: Any) -> None:
    """Half of a character, which JSON can write as an escape, and UTF-8, and so a report, cannot."""
    if not _SURROGATE.search(text):
        return
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        found = exc.object[exc.start]
        raise ValueError(f"it holds text with {found!a}, which is half of a character (a lone surrogate)") from exc


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"it holds {text[:40]}, and every number must be finite")
    return number


def _integer(text: str) -> int | float:
    return int(text) if len(text) < 20 else _finite(text)


def check_schema(file: Path, fields: Any) -> None:
    """Compare with results.schema.json.

    Raises:
        InputError: Something is not as the schema wants it; the message names the first place and what is wanted.
    """
    from jsonschema import Draft202012Validator, validators

    extend: Any = validators.extend  # it has no types

    def items(validator: Any, wanted: Any, found: Any, schema: Any) -> Iterator[Any]:
        # As the standard; millions of plain numbers take a second in this way and minutes in the other.
        if wanted != {"type": "number"} or not isinstance(found, list) or {*map(type, found)} - {int, float}:
            yield from Draft202012Validator.VALIDATORS["items"](validator, wanted, found, schema)

    schema = json.loads(resources.files("edgeact").joinpath("results.schema.json").read_text("utf-8"))
    try:
        error = next(extend(Draft202012Validator, {"items": items})(schema).iter_errors(fields), None)
        if error is None:
            return
        place, found, wanted = _short(error.json_path), _short(error.message), error.schema.get("description")
    except RecursionError as exc:
        raise InputError(f"{file} is no results.json: it is nested too deeply") from exc
    meant = f" ({_short(wanted)})" if wanted else ""
    raise InputError(f"{file} is no results.json: at {place}: {found}{meant}; results.schema.json of edgeact")


def _short(message: str) -> str:
    """One line that names both what was found, which may be the whole file, and what is wrong with it."""
    line, half = " ".join(message.split()), _MESSAGE_CHARACTERS // 2
    return line if len(line) <= _MESSAGE_CHARACTERS else f"{line[:half]} … {line[-half:]}"
