"""Tables of descriptors: synthetic."""

from typing import Any

import numpy as np

from edgeact.clip import ClipSpec
from edgeact.descriptor_table import Fields, Table

SPEC = ClipSpec(frames=16, frame_stride=1, short_side=18, crop_height=16, crop_width=16)


def fields(**changes: Any) -> Fields:
    known: dict[str, Any] = {
        "root": None,
        "per": "clip",
        "descriptor": "d" * 64,
        "network": "n" * 64,
        "model": "c3d",
        "layer": "fc6",
        "order": "average-normalize",
        "hop": 8,
        "spec": SPEC,
        "dims": 4,
        "computed_by": "PyTorch",
    }
    return Fields(**known | changes)


def table(videos: int = 5, clips: int = 4, *, labels: bool = True, seed: int = 0, **changes: Any) -> Table:
    """Random directions: `clips` of a second each, of `videos`, of which each half overlaps the one before."""
    own = fields(**changes)
    ids = [f"{'ab'[i % 2]}/{i:02}.mp4" for i in range(videos) for _ in range(clips)]
    start_s = np.tile(np.arange(clips) / 2, videos)
    rows = np.random.default_rng(seed).standard_normal((len(ids), own.dims))
    return Table(
        ids=tuple(ids),
        start_s=start_s,
        end_s=start_s + 0.9,
        descriptors=rows.astype(np.float32),
        fields=own,
        labels=tuple(id[0] for id in ids) if labels else None,
    )
