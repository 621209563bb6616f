"""Descriptors of many videos, or of a camera as it goes: the rows of a table.

video ─► clips ─► network up to a layer, or a descriptor's bundle ─► d numbers a clip ─► length 1, by clip or by video

Shapes: N clips, D features, d dimensions.
"""

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeact._decode import public_name
from edgeact.bundle import Bundle, open_bundle
from edgeact.data import VideoDataset
from edgeact.descriptor import Descriptor, Reading
from edgeact.descriptor_table import Fields, Per, Table, write_table
from edgeact.errors import BundleError, InputError
from edgeact.features import Extract, FeatureSet, compute_rows

if TYPE_CHECKING:
    from torch import nn

    from edgeact._workers import Elsewhere

__all__ = ["BundleRecipe", "Describer", "by_bundle", "by_network", "extract_live", "extract_videos", "open_videos"]

_WRITE_EVERY_S = 30


@dataclass(frozen=True, kw_only=True, eq=False)
class Describer:
    """A network whose outputs are read as descriptors.

    Attributes:
        extract: A clip to features `[1, D]`, or to the outputs `[1, d]` of a bundle.
        digest: Of what `extract` computes.
        outputs: Features `[N, D]` to `[N, d]`, which `reading` reads.
        reading: See `edgeact.descriptor.Reading`.
        fields: What the descriptors of a table are of, but for `root` and `per`.
    """

    extract: Extract
    digest: str
    outputs: Callable[[NDArray[np.float32]], NDArray[np.float64]]
    reading: Reading
    fields: Fields

    def read(self, outputs_Nd: NDArray[np.float64], per: Per) -> NDArray[np.float32]:
        """Descriptors `[N, d]` of a video's clips, or `[1, d]` of the video."""
        rows = self.reading.clips(outputs_Nd) if per == "clip" else self.reading.video(outputs_Nd)[None]
        return rows.astype(np.float32)


def by_network(model: "nn.Module", name: str, descriptor: Descriptor, *, live: bool = False) -> Describer:
    """`model` in PyTorch and the projection in numpy; on one thread, unless it is `live`.

    Raises:
        CheckpointError: The descriptor is of another network.
    """
    from edgeact._capture import check_network, eager
    from edgeact._feature_layer import described_features, feature_extractor

    spec = descriptor.spec
    check_network(model, spec)
    features = described_features(model, spec, descriptor)
    fields = Fields(
        root=None,
        per="clip",
        descriptor=descriptor.digest,
        model=name,
        dims=descriptor.dims,
        computed_by="PyTorch",
        **{field: getattr(descriptor, field) for field in ("network", "layer", "order", "hop", "spec")},
    )
    return Describer(
        extract=eager(features, spec) if live else feature_extractor(features, spec),
        digest=descriptor.network,
        outputs=descriptor.project,
        reading=descriptor.reading(whitened=False),
        fields=fields,
    )


def by_bundle(bundle: Bundle | str | os.PathLike[str], *, live: bool = False) -> Describer:
    """A bundle that ends in a descriptor, by its own runtime; on one thread, unless it is `live`. No torch is needed.

    Raises:
        BundleError: It is damaged, or gives no descriptors.
        MissingDependencyError: Its runtime is not installed.
    """
    from edgeact.runtime import load

    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if (reading := opened.reading) is None:
        raise BundleError(
            f"{opened.path} gives logits, and no descriptors: `edgeact export --descriptor` makes a bundle that does"
        )
    fields = _bundle_fields(opened)
    runner = load(opened, threads=0 if live else 1)
    if runner.proxy_for:
        fields = dataclasses.replace(fields, computed_by=f"{fields.computed_by}, by {runner.runtime}")
    who = [opened.manifest["digest"], runner.runtime, runner.runner.version, runner.runner.device]
    return Describer(
        extract=runner,
        digest=hashlib.sha256(repr(who).encode()).hexdigest(),
        outputs=lambda outputs: np.asarray(outputs, np.float64),
        reading=reading,
        fields=fields,
    )


def _bundle_fields(bundle: Bundle) -> Fields:
    manifest, reading = bundle.manifest, bundle.reading
    assert reading is not None
    try:
        facts = manifest["facts"]["descriptor"]
        return Fields.from_dict(
            {
                **{name: facts[name] for name in ("network", "layer", "hop")},
                "descriptor": facts["digest"],
                "root": None,
                "per": "clip",
                "model": manifest["model"].removesuffix(f"_pca{facts['dims']}"),
                "order": reading.order,
                "spec": manifest["spec"],
                "dims": len(reading.scale),
                "computed_by": f"{manifest['target']} {manifest['precision']}",
            }
        )
    except (LookupError, TypeError, AttributeError, InputError) as exc:
        raise BundleError(f"{bundle.path} does not say what its descriptors are of ({exc}): export it again") from exc


@dataclass(frozen=True)
class BundleRecipe:
    """How a worker opens a descriptor's bundle: from its folder."""

    path: str

    def build(self) -> tuple[Extract, str]:
        """Its runner, on one thread, and the digest."""
        found = by_bundle(self.path)
        return found.extract, found.digest


def open_videos(
    dataset: VideoDataset,
    describer: Describer,
    *,
    hop: int | None = None,
    elsewhere: "Elsewhere | None" = None,
    **options: Any,
) -> FeatureSet:
    """These videos through the describer's network, to iterate over.

    Args:
        hop: Sampled frames from clip to clip; None takes that of the descriptor.
        elsewhere: Where other processes or machines compute them; None computes them here.
        options: Further ones of `FeatureSet`.
    """
    layer, spec = describer.fields.layer, describer.fields.spec
    hop = describer.fields.hop if hop is None else hop
    compute = None if elsewhere is None else elsewhere.workers(describer.digest, spec, hop)
    return FeatureSet(dataset, describer.extract, describer.digest, layer, spec, hop, compute=compute, **options)


def extract_videos(videos: FeatureSet, describer: Describer, *, per: Per = "clip") -> Table:
    """The descriptors of all videos, in their order.

    Raises:
        VideoError, InputError, DeviceError: As going through `videos` does.
    """
    ids, labels, rows, times = [], [], [], []
    names = videos.dataset.labels
    for video in videos:
        found = describer.read(describer.outputs(video.clips), per)
        rows.append(found)
        times.append(_times(video.times, per))
        ids += [video.sample.id] * len(found)
        labels += [names[video.sample.label]] * len(found) if names else []
    start_s, end_s = np.concatenate(times).T.copy()
    return Table(
        ids=tuple(ids),
        start_s=start_s,
        end_s=end_s,
        descriptors=np.concatenate(rows),
        fields=dataclasses.replace(describer.fields, root=str(videos.dataset.root), per=per, hop=videos.hop),
        labels=tuple(labels) if labels else None,
    )


def _times(times_N2: NDArray[np.float64], per: Per) -> NDArray[np.float64]:
    """Of each clip, or from the start of the first to the end of the last."""
    return times_N2 if per == "clip" else np.array([[times_N2[0, 0], times_N2[-1, 1]]])


def extract_live(
    out: str | os.PathLike[str],
    source: str,
    describer: Describer,
    *,
    hop: int | None = None,
    per: Per = "clip",
    seconds: float | None = None,
) -> None:
    """Write the descriptors of a camera or stream to the table `out`: each half minute, and when it ends or is stopped.

    Args:
        out: See `edgeact.descriptor_table.write_table`.
        source: A camera ("/dev/video0", or its number "0") or a URL.
        describer: One that is `live`.
        hop: Sampled frames from clip to clip; None takes that of the descriptor.
        per: One row for each clip, or one for all of it.
        seconds: Stop after the clips of so many; None goes on until there are no more, or KeyboardInterrupt.

    Raises:
        VideoError: The source cannot be opened, or breaks off; what came before is written.
        InputError: It ended, or was stopped, before the first clip did: nothing is written.
    """
    hop = describer.fields.hop if hop is None else hop
    fields = dataclasses.replace(describer.fields, per=per, hop=hop)
    name, written = public_name(source), time.monotonic()
    outputs: list[NDArray[np.float64]] = []
    times: list[NDArray[np.float64]] = []

    def write() -> None:
        start_s, end_s = _times(np.concatenate(times), per).T.copy()
        rows = describer.read(np.concatenate(outputs), per)
        ids = (name,) * len(rows)
        write_table(out, Table(ids=ids, start_s=start_s, end_s=end_s, descriptors=rows, fields=fields))

    try:
        for features, when in compute_rows(source, name, describer.extract, fields.spec, hop, threads=0):
            if seconds is not None and when[0, 1] > seconds:
                break
            outputs.append(describer.outputs(features))
            times.append(when)
            if time.monotonic() - written > _WRITE_EVERY_S:
                write()
                written = time.monotonic()
        if not outputs:
            raise InputError(f"{name}: no clip ends within {seconds} s; give more --seconds")
    except KeyboardInterrupt:
        if not outputs:  # else a table of an earlier run would be taken for this one's
            raise InputError(f"{name}: stopped before its first clip ended; nothing is written") from None
        raise
    finally:
        if outputs:
            write()
