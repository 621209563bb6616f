"""Calibration: which observer's ranges an int8 network is made with."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeact._capture import fold, quiet_torchao
from edgeact.clip import ClipSpec
from edgeact.quantize.scheme import Scheme

with quiet_torchao():
    from edgeact.quantize import calibrate as module
    from edgeact.quantize.calibrate import calibrate
    from edgeact.quantize.ranges import observe

SPEC = ClipSpec(frames=4, short_side=32, crop_height=32, crop_width=32)


class Spiked(nn.Module):
    """Its logits are means, to which one value in some thousands, `gain` times as large as the others, adds little."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.point, self.fc = nn.Conv3d(3, 4, 1), nn.Conv3d(4, 4, 1), nn.Linear(4, 3)
        self.register_buffer("gain", torch.ones(SPEC.frames, 32, 32))
        self.gain[0, 0, 0] = gain

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.point((self.conv(clip) * self.gain).relu()).tanh().mean((2, 3, 4)))
        return logits


def clips(count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, *SPEC.clip_shape), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize(("gain", "best"), [(40.0, "percentile"), (1.0, "mse")])
def test_the_observer_that_loses_least_is_taken(gain: float, best: str) -> None:
    graph, seen = fold(Spiked(gain).eval(), SPEC), clips(20)
    with quiet_torchao():
        found = calibrate(graph, iter(seen), SPEC, Scheme())
        ranges = observe(graph, seen, SPEC, Scheme())
        named = calibrate(graph, seen, SPEC, Scheme(), "mse")
    assert found.sqnr_db.keys() == ranges.keys() == {"mse", "percentile", "min-max"}
    assert found.observer == max(found.sqnr_db, key=lambda name: found.sqnr_db[name]) == best, found.sqnr_db
    assert found.ranges == ranges[found.observer]
    assert (named.observer, named.ranges, named.sqnr_db) == ("mse", ranges["mse"], {})


@pytest.mark.parametrize(("count", "step"), [(3, 1), (64, 1), (65, 2), (100, 2), (256, 4)])
def test_the_judging_clips_are_spread_over_all(count: int, step: int) -> None:
    kept: list[Any] = []
    assert list(module._keeping(range(count), kept)) == list(range(count))  # type: ignore[arg-type]
    assert kept == list(range(0, count, step))
