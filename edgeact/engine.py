"""Engines: what a runtime compiles on the machine where it runs, from a bundle's artifact.

An engine is native code, so it never travels in a bundle: it is built here, kept in the user's own cache, and loaded
only where every fact of its stamp still holds.

<cache>/engines/<runtime>/<sha256 of the artifact>/<sha256 of the machine's facts>/
stamp.json   runtime, artifact, machine, settings, what the build told, sha256 of every other file, date
…            the engine's files
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeact._cache import cache_dir
from edgeact._manifest import file_digest
from edgeact.environment import today
from edgeact.errors import EngineError

__all__ = ["Engine", "build_engine", "open_engine", "remove_engine"]


@dataclass(frozen=True)
class Engine:
    """A verified engine: its folder, and its stamp, in which `built` is what the build told."""

    folder: Path
    stamp: Mapping[str, Any]


def build_engine(
    runtime: str,
    bundle: Path,
    machine: Mapping[str, str],
    build: Callable[[Path], Mapping[str, Any]],
    *,
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Engine:
    """The engine of a bundle for this machine: the one in the cache, or built now.

    Args:
        runtime: Name of the runner.
        bundle: The folder with the artifact's files `model.*`, which hold every other choice that shapes the engine.
        machine: Every fact of this machine and its tools that the engine depends on.
        build: Writes the engine's files into an empty folder and returns what the stamp should tell, in JSON types.
        settings: What was chosen for the build, in JSON types: an engine of other settings is built anew.
        force: Build even where there is one.

    Raises:
        EngineError: The cache could be written by other users.
    """
    artifact, chosen = _artifact_digest(bundle), dict(settings or {})
    place = _place(runtime, artifact, machine)
    cache_dir().mkdir(parents=True, exist_ok=True)
    for folder in reversed(place.parents[:3]):
        folder.mkdir(mode=0o700, exist_ok=True)
    _check_private(place)
    if not force:
        with contextlib.suppress(EngineError):
            found = open_engine(runtime, bundle, machine)
            if found.stamp.get("settings", {}) == chosen:
                return found
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.partial")
    old = partial.with_suffix(".old")
    try:
        partial.mkdir(mode=0o700)
        told = dict(build(partial))
        stamp = {"runtime": runtime, "artifact": artifact, "machine": dict(machine), "settings": chosen}
        stamp |= {"built": told, "date": today(), "files": _digests(partial)}
        (partial / "stamp.json").write_text(json.dumps(stamp, indent=1) + "\n")
        if place.exists():
            place.rename(old)
        partial.rename(place)
    finally:
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)
    return open_engine(runtime, bundle, machine)


def open_engine(runtime: str, bundle: Path, machine: Mapping[str, str]) -> Engine:
    """The engine of a bundle in the cache, every file and every fact of its stamp verified.

    Raises:
        EngineError: There is none for this machine, it changed, or other users could have written it.
    """
    artifact = _artifact_digest(bundle)
    place = _place(runtime, artifact, machine)
    _check_private(place)
    advice = f"run `edgeact compile {bundle}`"
    if not place.is_dir():
        raise EngineError(f"{_why_none(place, machine)}: {advice}")
    stamp = _read_stamp(place)
    if stamp is None or stamp.get("files") != _digests(place):
        raise EngineError(f"the engine in {place} has changed since it was compiled: {advice}")
    there = {"runtime": stamp.get("runtime"), "artifact": stamp.get("artifact"), **stamp["machine"]}
    here = {"runtime": runtime, "artifact": artifact, **machine}
    for name in _changes(there, here):
        found, wanted = there.get(name), here.get(name)
        raise EngineError(f"the engine in {place} is for the {name} {found!r}, and here it is {wanted!r}: {advice}")
    return Engine(place, stamp)


def remove_engine(engine: Engine) -> None:
    """Take an engine out of the cache."""
    shutil.rmtree(engine.folder)


def _artifact_digest(bundle: Path) -> str:
    return _digest({file.name: file_digest(file) for file in sorted(bundle.glob("model.*"))})


def _digest(facts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _place(runtime: str, artifact: str, machine: Mapping[str, str]) -> Path:
    return cache_dir() / "engines" / runtime / artifact / _digest(machine)


def _check_private(place: Path) -> None:
    """Refuse a cache of engines into which another user could have put code."""
    if not hasattr(os, "getuid"):  # Windows: a user's cache is the user's own
        return
    for folder in (place, *place.parents[:3]):
        try:
            status = folder.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise EngineError(
                f"{folder} is a link, belongs to another user or can be written by others, and engines are native "
                "code: remove it, or give a folder of your own in EDGEACT_CACHE"
            )


def _digests(place: Path) -> dict[str, str]:
    files = (file for file in sorted(place.rglob("*")) if not file.is_dir() and file != place / "stamp.json")
    return {file.relative_to(place).as_posix(): file_digest(file) for file in files}


def _read_stamp(place: Path) -> dict[str, Any] | None:
    """The stamp of an engine; None where it is absent or damaged."""
    try:
        stamp = json.loads((place / "stamp.json").read_text())
        return stamp if isinstance(stamp["machine"], dict) and isinstance(stamp["built"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    return [name for name in {**there, **here} if there.get(name) != here.get(name)]


def _why_none(place: Path, machine: Mapping[str, str]) -> str:
    """What became of the machine since the engine that is nearest was compiled, if there is any."""
    others = [stamp["machine"] for other in place.parent.glob("[!.]*") if (stamp := _read_stamp(other))]
    if not others:
        return "this bundle runs from an engine, which is not compiled on this machine yet"
    nearest = min(others, key=lambda other: len(_changes(other, machine)))
    name = _changes(nearest, machine)[0]
    return f"the engine was compiled for the {name} {nearest.get(name)!r}, and here it is {machine.get(name)!r}"
