"""The manifest of a bundle: what it is, and the hash of every file. It may come from anyone, and is checked as such."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgeact.errors import BundleError

__all__ = [
    "check_files",
    "check_unlisted",
    "file_digest",
    "inside",
    "manifest_digest",
    "read_manifest",
    "write_manifest",
]

SCHEMA = 1
_MAX_MANIFEST_BYTES = 64 << 20
_FIELDS = {
    "schema": int,
    "name": str,
    "model": str,
    "target": str,
    "precision": str,
    "form": str,
    "runtime": str,
    "artifact": list,
    "spec": dict,
    "labels": list,
    "io": dict,
    "gates": dict,
    "facts": dict,
    "files": dict,
    "digest": str,
}


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write `manifest.json` with the hash of every file of `folder`; last, since it seals the bundle."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "manifest.json")
    manifest = {"schema": SCHEMA, **fields}
    manifest["files"] = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
    manifest["digest"] = manifest_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle, as its digest seals it; every path in it inside the folder.

    Raises:
        BundleError: There is none, it is damaged, hostile or of another schema.
    """
    file = folder / "manifest.json"
    if not file.is_file():
        what = "is not a folder" if not folder.is_dir() else "holds no manifest.json"
        raise BundleError(f"{folder} is not a bundle: it {what}; `edgeact export` writes one")
    if file.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{file} has {file.stat().st_size} bytes: no bundle has a manifest that large")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as exc:
        raise BundleError(f"{file} is not JSON ({exc}): copy or export the bundle again") from exc
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise BundleError(f"{file} has schema {found!r}, this edgeact reads schema {SCHEMA}")
    for key, kind in _FIELDS.items():
        if not isinstance(manifest.get(key), kind):
            raise BundleError(f"{file} has no usable {key!r}: it must be a {kind.__name__}")
    if manifest["digest"] != manifest_digest(manifest):
        raise BundleError(f"{file} is damaged: it has changed since the export; copy or export the bundle again")
    if not manifest["labels"] or not all(isinstance(label, str) for label in manifest["labels"]):
        raise BundleError(f"{file} has labels that are not text")
    for name in manifest["files"]:
        inside(folder, name)
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare the files of `folder` with its manifest.

    Raises:
        BundleError: A file is missing, changed or unlisted, or the artifact is not among them.
    """
    wanted = manifest["files"]
    for name, digest in wanted.items():
        file = inside(folder, name)
        if not file.is_file():
            raise BundleError(f"{folder} lacks {name}, which its manifest lists: copy the bundle again")
        if file_digest(file) != digest:
            raise BundleError(f"{folder} is damaged: {name} has changed since the export; copy or export it again")
    check_unlisted(folder, manifest)
    for name in manifest["artifact"]:
        if not isinstance(name, str) or name not in wanted:
            raise BundleError(f"{folder} names the artifact {name!r}, which is not among its files")


def check_unlisted(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse files of `folder` that its manifest does not list.

    Raises:
        BundleError: There is one.
    """
    wanted = {"manifest.json", *manifest["files"]}
    found = (file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if not file.is_dir())
    unlisted = [name for name in found if name not in wanted]
    if unlisted:
        raise BundleError(f"{folder} holds files that its manifest does not list, first {unlisted[0]!r}: remove them")


def inside(folder: Path, name: Any) -> Path:
    """`folder / name`, refused if it would leave the folder (by `..`, an absolute path or a link).

    Raises:
        BundleError: It is refused.
    """
    if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
        raise BundleError(f"{folder} names a file {name!r}, which is not a plain relative path")
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not (folder / pure).resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{folder} points outside its folder, at {name!r}: refused")
    return folder / pure


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest without its own digest."""
    fields = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
