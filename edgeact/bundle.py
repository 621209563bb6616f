"""The bundle: the folder a device gets. A manifest with the hash of every file, read as data and never executed.

ir_csn_26-openvino-fp32/
manifest.json     schema, model, ClipSpec, labels, io, gates, versions, sha256 of every other file and of itself
model.*           the artifact
golden/           videos, their decoded frames (.npy uint8 [T, H, W, 3]), reference logits, golden.json
descriptor.npz    of a network that ends in a descriptor: labelled examples, and the linear SVM trained on them
reference.npz     ids, labels, sha256 of the decoded clips, logits of reference and artifact on the evaluation set
report.json  report.html
"""

import hashlib
import json
import os
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact._manifest import check_files, check_unlisted, inside, read_manifest, write_manifest
from edgeact.clip import ClipSpec
from edgeact.descriptor import Described, Reading
from edgeact.descriptor_file import read_examples, reading_from_dict, write_examples
from edgeact.errors import BundleError, InputError
from edgeact.parity import Report

__all__ = [
    "Bundle",
    "Draft",
    "GoldenClip",
    "ReferenceSet",
    "aside",
    "clip_digest",
    "create_bundle",
    "open_bundle",
    "write_described",
    "write_golden",
    "write_manifest",
    "write_reference",
]


@dataclass(frozen=True)
class GoldenClip:
    """One clip with the answer to each stage of an app's pipeline: video, decoded frames, reference logits."""

    id: str
    label: str
    video: Path
    frames: NDArray[np.uint8]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class ReferenceSet:
    """Reference logits `[N, K]` of the evaluation set, by clip id, with true labels and the clips' digests.

    `artifact` holds those of the artifact itself as the export ran it; None where it could not be run there, and in
    bundles from before it was stored.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    digests: tuple[str, ...]
    logits: NDArray[np.float32]
    artifact: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every hash verified, every path inside the folder."""

    path: Path
    manifest: Mapping[str, Any] = field(repr=False)
    spec: ClipSpec

    @property
    def name(self) -> str:
        """Name of the bundle, as exported."""
        return str(self.manifest["name"])

    @property
    def runtime(self) -> str:
        """The runner that executes it."""
        return str(self.manifest["runtime"])

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return tuple(self.manifest["labels"])

    @property
    def reading(self) -> Reading | None:
        """How its outputs are read as descriptors; None of a network that classifies.

        Raises:
            BundleError: The manifest says so in a way that cannot be used.
        """
        output = self.manifest["io"].get("output")
        if not isinstance(output, dict) or output.get("content", "logits") == "logits":
            return None
        try:
            return reading_from_dict(output["reading"], int(output["shape"][1]))
        except (LookupError, TypeError, ValueError, OverflowError) as exc:
            raise BundleError(f"{self.path} has a manifest that cannot be used: {exc}") from exc

    @property
    def outputs(self) -> int:
        """Numbers that one clip gives: a logit for each label, or those of a descriptor."""
        return len(self.labels) if self.reading is None else len(self.reading.scale)

    def described(self) -> Described | None:
        """What its outputs mean as descriptors; None of a network that classifies.

        Raises:
            BundleError: The examples are missing or malformed.
        """
        if (reading := self.reading) is None:
            return None
        try:
            examples = read_examples(self.path / "descriptor.npz", len(reading.scale), len(self.labels))
        except InputError as exc:
            raise BundleError(f"{exc}; export the bundle again") from exc
        return Described(reading=reading, examples=examples)

    @property
    def artifact_mb(self) -> float:
        """Size of the artifact's files in megabytes (10^6 bytes)."""
        sizes: list[int] = [(self.path / name).stat().st_size for name in self.manifest["artifact"]]
        return sum(sizes) / 1e6

    def report(self) -> Report:
        """The export's report.

        Raises:
            BundleError: The file is missing or malformed.
        """
        try:
            return Report.from_dict(json.loads((self.path / "report.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as exc:  # InputError is a ValueError too
            raise BundleError(f"{self.path / 'report.json'} cannot be read: {exc}; export the bundle again") from exc

    def golden(self) -> list[GoldenClip]:
        """The golden clips.

        Raises:
            BundleError: The golden set is malformed.
        """
        folder = self.path / "golden"
        try:
            entries = json.loads((folder / "golden.json").read_text())
            logits = np.load(folder / "logits.npy", allow_pickle=False)
            clips = [
                GoldenClip(
                    id=str(entry["id"]),
                    label=str(entry["label"]),
                    video=inside(folder, entry["video"]),
                    frames=np.load(inside(folder, entry["frames"]), allow_pickle=False),
                    logits=row,
                )
                for entry, row in zip(entries, logits, strict=True)
            ]
        except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as exc:  # EOFError: an empty .npy
            raise BundleError(f"{folder} is not a golden set: {exc}; export the bundle again") from exc
        if not clips:
            raise BundleError(f"{folder} is not a golden set: it is empty; export the bundle again")
        wanted = self.spec.clip_shape
        for clip in clips:
            if clip.frames.shape != wanted or clip.frames.dtype != np.uint8:
                raise BundleError(
                    f"golden clip {clip.id!r} is {clip.frames.dtype} {clip.frames.shape}, not uint8 {wanted}"
                )
            if clip.logits.shape != (self.outputs,):
                each = f"one for each of the {self.outputs} labels" if self.reading is None else f"{self.outputs}"
                raise BundleError(
                    f"golden clip {clip.id!r} has logits of shape {clip.logits.shape}, not {each} of the manifest; "
                    "export the bundle again"
                )
        return clips

    def reference(self) -> ReferenceSet:
        """The evaluation set's reference outputs.

        Raises:
            BundleError: The file is malformed.
        """
        file = self.path / "reference.npz"
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                found = ReferenceSet(
                    ids=tuple(str(i) for i in arrays["ids"]),
                    labels=arrays["labels"].astype(np.int64),
                    digests=tuple(str(d) for d in arrays["digests"]),
                    logits=arrays["logits"].astype(np.float32),
                    artifact=arrays["artifact"].astype(np.float32) if "artifact" in arrays else None,
                )
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as exc:
            raise BundleError(f"{file} holds no reference outputs: {exc}; export the bundle again") from exc
        n, k, what = len(found.ids), self.outputs, "labels" if self.reading is None else "outputs"
        in_range = ((found.labels >= 0) & (found.labels < len(self.labels))).all()
        shapes = {found.logits.shape, found.logits.shape if found.artifact is None else found.artifact.shape}
        if found.labels.shape != (n,) or len(found.digests) != n or shapes != {(n, k)} or not in_range:
            raise BundleError(f"{file} does not fit the {k} {what} of the manifest; export the bundle again")
        return found


@dataclass
class Draft:
    """A bundle that is being written: the folder to fill, and whether it will be the one that was asked for.

    Attributes:
        folder: Empty at first.
        held: False sets it aside: a bundle that fell short replaces none that held.
    """

    folder: Path
    held: bool = True


def aside(name: str) -> str:
    """The name of a bundle that fell short, where `name` was asked for."""
    return f"{name}-failed"


def clip_digest(clip: NDArray[np.uint8]) -> str:
    """sha256 of a decoded clip's bytes: tells whether a device decoded the same pixels."""
    return hashlib.sha256(np.ascontiguousarray(clip).tobytes()).hexdigest()


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle and verify it.

    Raises:
        BundleError: No bundle there, another schema version, a file that is missing, changed, unlisted or outside.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    try:
        spec = ClipSpec.from_dict(manifest["spec"])
    except InputError as exc:
        raise BundleError(f"{folder} has a manifest that cannot be used: {exc}") from exc
    return Bundle(path=folder, manifest=manifest, spec=spec)


@contextmanager
def create_bundle(out: Path, name: str) -> Iterator[Draft]:
    """A folder to fill, renamed to `out/name`, or `aside`, when the block ends well and removed when it does not.

    An older bundle of that name is replaced in one rename; a folder that is no bundle, or holds more, is never touched.

    Raises:
        InputError: `out/name` or the one aside exists and is not a bundle alone, or `out` is a file.
    """
    for place in (out / name, out / aside(name)):
        _check_replaceable(place)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: give a folder")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    partial = out / f".{name}.{uuid.uuid4().hex[:8]}.partial"
    old = partial.with_suffix(".old")
    final = out / name
    try:
        partial.mkdir(parents=True)
        draft = Draft(partial)
        yield draft
        if not draft.held:
            final = out / aside(name)
        _check_replaceable(final)  # once more: an export takes minutes
        if final.exists():
            final.rename(old)
        partial.rename(final)
    finally:
        if old.exists() and not final.exists():
            old.rename(final)
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in made:  # folders that this call made and that hold nothing
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _check_replaceable(place: Path) -> None:
    if place.exists() or place.is_symlink():
        try:
            if place.is_symlink():
                raise BundleError("it is a link")
            check_unlisted(place, read_manifest(place))
        except BundleError as exc:
            raise InputError(f"{place} is left alone, choose another --out or --name: {exc}") from exc


def write_golden(folder: Path, clips: Sequence[GoldenClip]) -> None:
    """Write `golden/`: videos as they are, decoded frames and logits as .npy, and an index."""
    golden = folder / "golden"
    golden.mkdir()
    entries = []
    for i, clip in enumerate(clips):
        video, frames = f"clip_{i}{clip.video.suffix}", f"clip_{i}.npy"
        shutil.copyfile(clip.video, golden / video)
        np.save(golden / frames, clip.frames, allow_pickle=False)
        entries.append({"id": clip.id, "label": clip.label, "video": video, "frames": frames})
    np.save(golden / "logits.npy", np.stack([clip.logits for clip in clips]), allow_pickle=False)
    (golden / "golden.json").write_text(json.dumps(entries, indent=1) + "\n")


def write_described(folder: Path, described: Described) -> None:
    """Write `descriptor.npz`."""
    write_examples(folder / "descriptor.npz", described.examples)


def write_reference(folder: Path, reference: ReferenceSet) -> None:
    """Write `reference.npz`."""
    artifact: dict[str, Any] = {} if reference.artifact is None else {"artifact": reference.artifact}
    np.savez(
        folder / "reference.npz",
        ids=np.array(reference.ids),
        labels=reference.labels,
        digests=np.array(reference.digests),
        logits=reference.logits,
        **artifact,
    )
