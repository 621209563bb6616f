"""Whitened against naive int8 output, simulated."""

import dataclasses
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from report_samples import report
from rich.console import Console

import edgeact
from edgeact._capture import eager, fold
from edgeact._feature_layer import descriptor_network, feature_network, network_digest
from edgeact._report_page import whitening_rows
from edgeact._whitened import _without_last_rounding, measure_whitening
from edgeact.clip import ClipSpec
from edgeact.data import VideoDataset
from edgeact.descriptor import Described, Descriptor, Examples, Reading
from edgeact.evaluate import EvaluationSet, Outputs
from edgeact.parity import NotMeasured, Report
from edgeact.quantize.calibrate import calibrate
from edgeact.quantize.convert import quantize
from edgeact.quantize.ranges import range_of
from edgeact.quantize.scheme import AFFINE, Observer
from edgeact.report import print_table, write_html
from edgeact.whitening import Rounding, Whitening, compare_whitening

SPEC = ClipSpec(frames=16, frame_stride=1, short_side=16, crop_height=16, crop_width=16)
SCALE = np.geomspace(100, 0.1, 4)


def described(scale: np.ndarray = SCALE) -> Described:
    generator = np.random.default_rng(0)
    return Described(
        reading=Reading(order="average-normalize", scale=scale),
        examples=Examples(
            descriptors=generator.standard_normal((9, len(scale))).astype(np.float32),
            labels=np.arange(9) % 3,
            svm_weights=generator.standard_normal((3, len(scale))).astype(np.float32),
            svm_bias=np.zeros(3, np.float32),
        ),
    )


def compared(rows: int = 40) -> Whitening:
    outputs = np.random.default_rng(1).standard_normal((rows, 4))
    clips = [f"{i}.mp4" for i in range(rows)]
    extremes = [(values.min(), values.max()) for values in (outputs, outputs * SCALE)]
    own, naive = (Rounding.of_range(*both, symmetric=False) for both in extremes)
    how = {"clips": clips, "labels": ("a", "b", "c")}
    return compare_whitening(outputs, own, naive, outputs, np.arange(rows) % 3, described(), **how)


def test_rounding_is_that_of_int8() -> None:
    rounding = Rounding(0.5, 3)
    np.testing.assert_allclose(rounding(np.array([0.0, 0.3, -0.26, 1e6, -1e6])), [0, 0.5, -0.5, 62.0, -65.5])
    values = np.random.default_rng(0).standard_normal(500)
    stored = torch.fake_quantize_per_tensor_affine(torch.from_numpy(values), 0.02, 7, -128, 127)
    np.testing.assert_allclose(Rounding(0.02, 7)(values), stored, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_ranges_are_calibrated_as_those_of_the_network(symmetric: bool) -> None:
    values = np.append(np.random.default_rng(0).uniform(-1, 3, 49_999), 5.0).astype(np.float32).reshape(-1, 100)
    found = {observer: range_of(values, observer, symmetric=symmetric) for observer in get_args(Observer)}
    assert found["min-max"] == (pytest.approx(-1, abs=0.01), 5)
    assert found["percentile"] == (pytest.approx(-1, abs=0.02), pytest.approx(3, abs=0.02))
    assert -1.01 < found["mse"][0] < 0 < found["mse"][1] <= 5
    rounding = Rounding.of_range(*found["min-max"], symmetric=symmetric)
    assert rounding.scale == pytest.approx(5 / 127.5 if symmetric else 6 / 255, rel=2e-3)
    assert (rounding.zero == 0) == symmetric


def test_naive_outputs_lose_the_small_components() -> None:
    found = compared()
    assert (found.clips, found.k) == (40, 10)
    assert found.cosine[1] < found.cosine[0]
    assert found.agreement[1] <= found.agreement[0]
    for share, (low, high) in zip(found.agreement, found.agreement_ci95, strict=True):
        assert low <= share <= high
    assert compared(rows=1).k == 0


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return edgeact.create_model("c3d", num_classes=3, width=0.125, input_size=[16, 16, 16]).eval()


def test_one_run_stands_for_both(model: torch.nn.Module) -> None:
    """Before the last rounding, the naive network gives what the whitened one does, times the scale."""
    generator = np.random.default_rng(0)
    clips = generator.integers(0, 256, (3, 1, 16, 16, 16, 3), dtype=np.uint8)
    digest = network_digest(feature_network(model, SPEC, "fc6"))
    directions = np.linalg.qr(generator.standard_normal((512, 4)))[0].T.astype(np.float32)
    descriptor = Descriptor(
        components=directions,
        mean=np.zeros(512, np.float32),
        variances=np.square(SCALE).astype(np.float32),
        explained=np.ones(4, np.float32) / 4,
        layer="fc6",
        order="average-normalize",
        model="c3d",
        network=digest,
        spec=SPEC,
        hop=8,
        videos=9,
        labels=("a", "b", "c"),
        examples=described().examples,
        versions={},
    )
    before = {}
    for whitened in (True, False):
        folded = fold(descriptor_network(model, SPEC, descriptor, whitened=whitened), SPEC, int8=True)
        ranges = calibrate(folded, list(clips), SPEC, AFFINE, "min-max").ranges
        network, rounding = _without_last_rounding(quantize(folded, ranges, AFFINE))
        assert rounding is not None
        before[whitened] = np.concatenate([eager(network, SPEC)(clip) for clip in clips])
    np.testing.assert_allclose(before[True] * SCALE, before[False], rtol=1e-4, atol=1e-5)


def test_what_is_not_whitened_or_not_rounded_is_not_compared(model: torch.nn.Module) -> None:
    clips = EvaluationSet(VideoDataset(Path(), (), ()), SPEC)
    none = Outputs((), (), np.zeros((0, 4), np.float32))
    folded, how = fold(model, SPEC, int8=True), {"observer": "mse", "symmetric": False}
    assert measure_whitening(folded, folded, clips, clips, none, described(np.ones(4)), **how) is None
    found = measure_whitening(folded, folded, clips, clips, none, described(), **how)
    assert isinstance(found, NotMeasured)
    assert "not rounded to int8" in found.not_measured


def test_the_report_shows_both(tmp_path: Path) -> None:
    found = dataclasses.replace(report(), whitening=compared())
    assert Report.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    rows = whitening_rows(found.whitening)
    assert [row[0] for row in rows] == ["cosine", "10 nearest clips", "linear SVM"]
    console = Console(width=200, record=True)
    print_table(found, console)
    assert "naive" in console.export_text()
    write_html(dataclasses.replace(found, descriptors=NotMeasured("no")), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "What whitening does for the output in int8" in page
    assert rows[0][2] in page
    assert whitening_rows(NotMeasured("no levels"))[0][3] == "not measured: no levels"
