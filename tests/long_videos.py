"""Labelled videos of several clips each: textures that drift, by class."""

from pathlib import Path

import numpy as np

from edgeact.video import write_video

__all__ = ["LABELS", "write_long_videos"]

LABELS = ("across", "down", "still")
_SHIFTS = {"across": (0, 1), "down": (1, 0), "still": (0, 0)}


def write_long_videos(root: Path, *, train: int = 8, test: int = 6, frames: int = 36) -> Path:
    """A folder with split.csv; each video 24 x 24 pixels, `frames` long, and its last third darker."""
    rows, generator = ["path,label,group,split"], np.random.default_rng(0)
    for label in LABELS:
        for i in range(train + test):
            texture = np.kron(generator.integers(0, 256, (6, 6, 3)), np.ones((4, 4, 1))).astype(np.uint8)
            down, right = _SHIFTS[label]
            video = [
                np.roll(texture, (down * t, right * t), (0, 1)) // (1 + (3 * t >= 2 * frames)) for t in range(frames)
            ]
            (root / label).mkdir(parents=True, exist_ok=True)
            write_video(root / label / f"{i:02}.mp4", np.stack(video), 25, options={"preset": "ultrafast"})
            split = "test" if i >= train else "val" if i == 0 else "train"
            rows.append(f"{label}/{i:02}.mp4,{label},{label}{i},{split}")
    (root / "split.csv").write_text("\n".join(rows) + "\n")
    return root
