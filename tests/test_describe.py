"""Descriptors: features of whole videos, their PCA, its file, and the network that ends in it."""

import dataclasses
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from long_videos import LABELS, write_long_videos
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

import edgeact
from edgeact._capture import eager
from edgeact._feature_layer import descriptor_network, feature_network
from edgeact.clip import ClipSpec, normalize
from edgeact.describe import SvmError, fit, fit_pca, open_features, train_svm
from edgeact.descriptor import Descriptor, Reading, project, unit
from edgeact.descriptor_file import (
    check_descriptor_path,
    load_descriptor,
    reading_from_dict,
    reading_to_dict,
    save_descriptor,
)
from edgeact.dimensions import accuracy_by_dimensions
from edgeact.errors import CheckpointError, InputError, MissingDependencyError, UnknownNameError, VideoError
from edgeact.features import FeatureSet
from edgeact.parity import NotMeasured
from edgeact.video import iter_windows

SPEC = ClipSpec(frames=16, frame_stride=1, short_side=18, crop_height=16, crop_width=16)
DIMS = 6


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_long_videos(tmp_path_factory.mktemp("long") / "videos")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return edgeact.create_model("c3d", num_classes=3, width=0.125, input_size=[16, 16, 16]).eval()


@pytest.fixture(scope="module")
def train(model: nn.Module, videos: Path) -> FeatureSet:
    return open_features(model, SPEC, videos, split="train", hop=8)


@pytest.fixture(scope="module")
def descriptor(train: FeatureSet) -> Descriptor:
    return fit(train, model_name="c3d", dims=DIMS)


def test_pca_is_that_of_the_averages(train: FeatureSet, descriptor: Descriptor) -> None:
    averages = np.stack([video.average for video in train])
    _, singular, directions = np.linalg.svd(averages - averages.mean(0), full_matrices=False)
    np.testing.assert_allclose(descriptor.mean, averages.mean(0), rtol=1e-5)
    np.testing.assert_allclose(descriptor.variances, singular[:DIMS] ** 2 / (len(averages) - 1), rtol=1e-4)
    np.testing.assert_allclose(np.abs((descriptor.components * directions[:DIMS]).sum(1)), 1, atol=1e-5)
    np.testing.assert_allclose(descriptor.explained, (singular**2 / (singular**2).sum())[:DIMS], rtol=1e-4)
    largest = descriptor.components[np.arange(DIMS), np.abs(descriptor.components).argmax(1)]
    assert (largest > 0).all()
    assert descriptor.videos == len(averages)
    assert descriptor.examples.descriptors.shape == (len(averages), DIMS)


def test_features_are_relu_of_the_layer_over_the_whole_video(model: nn.Module, train: FeatureSet) -> None:
    video = next(iter(train))
    clips = [window.clip for window in iter_windows(video.sample.path, SPEC, 8)]
    assert len(clips) > 1
    with torch.inference_mode():
        wanted = [model.features(torch.from_numpy(normalize(clip[None], SPEC))).numpy()[0] for clip in clips]
    np.testing.assert_allclose(video.clips, wanted, rtol=1e-5, atol=1e-6)
    assert (video.clips >= 0).all()


def test_many_rows_are_read_in_batches_and_twice_the_same() -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((900, 40)) * np.geomspace(30, 0.1, 40)
    pca, again = fit_pca(iter(rows), 5), fit_pca(iter(rows), 5)
    _, singular, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs((pca.components * directions[:5]).sum(1)), 1, atol=1e-6)
    np.testing.assert_allclose(pca.variances, singular[:5] ** 2 / 899, rtol=1e-6)
    np.testing.assert_array_equal(pca.components, again.components)
    assert pca.rows == 900


def test_memory_holds_a_few_hundred_rows() -> None:
    generator, alive, most = np.random.default_rng(0), [], 0

    def rows() -> Iterator[np.ndarray]:
        nonlocal most
        for _ in range(2000):
            row = generator.standard_normal(20)
            alive.append(weakref.ref(row))
            most = max(most, sum(found() is not None for found in alive))
            yield row

    fit_pca(rows(), 3)
    assert 200 < most < 300


def test_what_was_computed_is_not_computed_again_after_a_stop(
    train: FeatureSet, descriptor: Descriptor, tmp_path: Path
) -> None:
    calls: list[int] = []

    def stopping(clip: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 21:
            raise KeyboardInterrupt
        return train.extract(clip)

    interrupted = dataclasses.replace(train, extract=stopping, cache=tmp_path, skipped=[])
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, model_name="c3d", dims=DIMS)
    assert not list(tmp_path.rglob("*.part"))
    finished = len(list(tmp_path.rglob("*.json")))
    assert finished > 1
    resumed = fit(interrupted, model_name="c3d", dims=DIMS)
    clips = sum(len(video.clips) for video in train)
    assert clips < len(calls) < clips + 3  # only the video that was stopped in ran again
    np.testing.assert_array_equal(resumed.components, descriptor.components)
    np.testing.assert_array_equal(resumed.examples.descriptors, descriptor.examples.descriptors)


def test_damaged_features_are_computed_again(train: FeatureSet, tmp_path: Path) -> None:
    kept = dataclasses.replace(train, cache=tmp_path, skipped=[])
    before = [np.array(video.clips) for video in kept]
    file = next(iter(tmp_path.rglob("*.f32")))
    file.write_bytes(file.read_bytes()[:-4])
    for video, clips in zip(kept, before, strict=True):
        np.testing.assert_array_equal(video.clips, clips)


def test_a_full_disk_leaves_nothing_half_written(
    train: FeatureSet, tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    with full_disk(), pytest.raises(OSError, match="large"):
        next(iter(dataclasses.replace(train, cache=tmp_path)))
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_corrupt_videos_are_errors_or_listed(model: nn.Module, videos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "videos"
    shutil.copytree(videos, broken)
    dataset = edgeact.data.open_dataset(broken, split="train")
    first = dataset.samples[0]
    first.path.write_bytes(b"not a video")
    with pytest.raises(VideoError, match=first.path.name):
        fit(open_features(model, SPEC, broken, split="train"), model_name="c3d", dims=2)
    skipping = open_features(model, SPEC, broken, split="train", on_corrupt="skip")
    found = fit(skipping, model_name="c3d", dims=2)
    assert found.videos == len(dataset.samples) - 1
    assert len(skipping.skipped) == 1
    assert first.path.name in skipping.skipped[0]
    for sample in dataset.samples:
        sample.path.write_bytes(b"")
    with pytest.raises(VideoError, match="none of its videos"):
        list(skipping)
    shutil.rmtree(broken)
    with pytest.raises(VideoError, match="no such file"):
        list(dataclasses.replace(skipping, on_corrupt="error"))


def test_what_cannot_be_fitted_says_why(train: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    n = len(train.dataset.samples)
    with pytest.raises(InputError, match=rf"{n} usable videos .* give --dims {n - 1} or less"):
        fit(train, model_name="c3d", dims=n)
    with pytest.raises(InputError, match="dims is 0"):
        fit(train, model_name="c3d", dims=0)
    with pytest.raises(UnknownNameError, match="did you mean 'average-normalize'"):
        fit(train, model_name="c3d", order="average-normalise")
    with pytest.raises(InputError, match="hop is 0"):
        dataclasses.replace(train, hop=0)
    with pytest.raises(InputError, match="10 dimensions asked for, and the layer has 4 features"):
        fit_pca(np.eye(30, 4), 10)
    with pytest.raises(InputError, match="0 usable videos"):
        fit_pca([], 1)
    with pytest.raises(InputError, match="vary in 1 dimensions, and 3 were asked for: give --dims 1 or less"):
        fit_pca(np.arange(30.0)[:, None] * np.ones(5), 3)
    with pytest.raises(InputError, match="every video gives the same ones"):
        fit_pca(np.ones((30, 5)), 3)
    with pytest.raises(SvmError, match="3 videos of one class"):
        train_svm(np.eye(3), np.zeros(3, np.int64), 2)
    alike = tuple(dataclasses.replace(sample, label=0) for sample in train.dataset.samples)
    with pytest.raises(SvmError, match=f"{n} videos of one class"):
        fit(dataclasses.replace(train, dataset=dataclasses.replace(train.dataset, samples=alike)), model_name="c3d")
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(MissingDependencyError, match=r"edgeact\[describe\]"):
        fit(train, model_name="c3d")


def test_nan_features_are_refused_and_not_kept(train: FeatureSet, tmp_path: Path) -> None:
    def nan(clip: np.ndarray) -> np.ndarray:
        return np.full((1, 4), np.nan, np.float32)

    with pytest.raises(InputError, match="not finite"):
        list(dataclasses.replace(train, extract=nan, cache=tmp_path))
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_two_classes_and_absent_ones_are_classified() -> None:
    rows = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    weights, bias = train_svm(rows, np.array([0, 0, 2, 2]), 3)
    assert (rows @ weights.T + bias).argmax(1).tolist() == [0, 0, 2, 2]
    assert np.isfinite(weights).all()
    assert np.isfinite(bias).all()


class Pooled(nn.Module):
    """Features as networks with global pooling have them."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm3d(8)
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.pool(self.norm(self.conv(clip)).relu()).flatten(1))


def test_any_layer_that_gives_a_vector_serves() -> None:
    model = Pooled().eval()
    clip = torch.randn(1, 3, 16, 16, 16)
    features = feature_network(model, SPEC, "pool")
    assert set(features.state_dict()) <= {"conv.weight", "conv.bias"} | {
        name for name in model.state_dict() if name.startswith("norm.")
    }
    with torch.inference_mode():
        wanted = model.pool(model.norm(model.conv(clip)).relu()).flatten(1).relu()
        torch.testing.assert_close(features(clip), wanted)
    with pytest.raises(UnknownNameError, match=r"did you mean 'pool'.*head, pool"):
        feature_network(model, SPEC, "pol")
    with pytest.raises(InputError, match=r"'conv' gives \(1, 8, 16, 16, 16\).*has pool, head"):
        feature_network(model, SPEC, "conv")


@pytest.mark.parametrize("whitened", [True, False])
@pytest.mark.parametrize("order", ["average-normalize", "normalize-average"])
def test_a_devices_clips_give_the_references_descriptor(
    model: nn.Module, train: FeatureSet, descriptor: Descriptor, order: Any, whitened: bool
) -> None:
    """The network's outputs, clip by clip, against PCA of the features in float64."""
    network = descriptor_network(model, SPEC, dataclasses.replace(descriptor, order=order), whitened=whitened)
    reading = Reading(order=order, scale=descriptor.reading(whitened=whitened).scale)
    device = eager(network.eval(), SPEC)
    for video in list(train)[:4]:
        outputs = np.concatenate([device(window.clip[None]) for window in iter_windows(video.sample.path, SPEC, 8)])
        assert outputs.shape == (len(video.clips), DIMS)
        coordinates = project(video.clips, descriptor.components, descriptor.mean)
        if order == "average-normalize":
            mean = video.average - descriptor.mean
            wanted = unit(mean @ descriptor.components.T.astype(np.float64))
        else:
            wanted = unit(coordinates).mean(0)
        np.testing.assert_allclose(reading.video(outputs), wanted, atol=2e-5)
        np.testing.assert_allclose(reading.clips(outputs), unit(coordinates), atol=2e-5)


def test_the_network_ends_in_one_layer_after_the_features(model: nn.Module, descriptor: Descriptor) -> None:
    network = descriptor_network(model, SPEC, descriptor)
    names = set(network.state_dict())
    assert not [name for name in names if "fc7" in name or "fc8" in name]
    assert {name for name in names if name.startswith("projection")} == {"projection.weight", "projection.bias"}
    assert network.projection.weight.shape == (DIMS, 512)


def test_whitened_outputs_have_variance_one(model: nn.Module, train: FeatureSet, descriptor: Descriptor) -> None:
    with torch.inference_mode():
        averages = torch.from_numpy(np.stack([video.average for video in train])).float()
        outputs = descriptor_network(model, SPEC, descriptor).projection(averages).numpy()
    np.testing.assert_allclose(outputs.var(0, ddof=1), 1, rtol=1e-3)
    np.testing.assert_allclose(outputs.mean(0), 0, atol=1e-3)


def test_a_descriptor_of_another_network_is_refused(model: nn.Module, descriptor: Descriptor) -> None:
    torch.manual_seed(1)
    other = edgeact.create_model("c3d", num_classes=3, width=0.125, input_size=[16, 16, 16])
    with pytest.raises(CheckpointError, match="of another network"):
        descriptor_network(other, SPEC, descriptor)
    with pytest.raises(CheckpointError, match=r"fitted with mean \[0\.48.*not \[0\.5"):
        descriptor_network(model, dataclasses.replace(SPEC, mean=(0.5, 0.5, 0.5)), descriptor)
    narrow = dataclasses.replace(descriptor, mean=descriptor.mean[:-1])
    with pytest.raises(CheckpointError, match="of 511 features, fc6 has 512"):
        descriptor_network(model, SPEC, narrow)


def test_the_head_does_not_matter(descriptor: Descriptor, model: nn.Module) -> None:
    same = edgeact.create_model("c3d", num_classes=3, width=0.125, input_size=[16, 16, 16])
    state = {name: value for name, value in model.state_dict().items() if "fc8" not in name}
    same.load_state_dict(state, strict=False)
    assert descriptor_network(same, SPEC, descriptor).projection.out_features == DIMS


def test_the_file_holds_all_of_it(descriptor: Descriptor, tmp_path: Path) -> None:
    file = tmp_path / "new" / "pca.safetensors"
    save_descriptor(file, descriptor)
    found = load_descriptor(file)
    for field in dataclasses.fields(Descriptor):
        one, other = getattr(found, field.name), getattr(descriptor, field.name)
        if isinstance(other, np.ndarray):
            np.testing.assert_array_equal(one, other)
        elif field.name == "examples":
            for part in dataclasses.fields(other):
                np.testing.assert_array_equal(getattr(one, part.name), getattr(other, part.name))
        else:
            assert one == other
    assert [path.name for path in file.parent.iterdir()] == ["pca.safetensors"]
    assert found.versions["scikit-learn"] == "1.9.1"


def rewritten(file: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """`file` with tensors and metadata changed."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as reader:
        fields = json.loads(reader.metadata()["edgeact-descriptor"])
    tensors = load_file(file)
    change(tensors, fields)
    save_file(tensors, file, metadata={"edgeact-descriptor": json.dumps(fields)})
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, f: f.update(version=2), "version 2, this edgeact reads 1"),
        (lambda t, f: f.update(order="pickle"), "unknown order"),
        (lambda t, f: f.pop("spec"), "damaged descriptor: 'spec'"),
        (lambda t, f: t.pop("mean"), "lacks mean"),
        (lambda t, f: t.update(mean=t["mean"][:-1]), r"mean is float32 \(511,\)"),
        (lambda t, f: t.update(mean=t["mean"].astype(np.float64)), "mean is float64"),
        (lambda t, f: t.update(mean=t["mean"] * np.float32(np.nan)), "mean holds values that are not finite"),
        (lambda t, f: t.update(variances=t["variances"] * 0), "no variance"),
        (lambda t, f: t.update({"examples/labels": t["examples/labels"] + 100}), "none of the 3 classes"),
        (lambda t, f: f.update(labels=["one"]), "svm_weights"),
        (lambda t, f: f.update(spec={"frames": -1}), "damaged"),
    ],
)
def test_a_damaged_file_is_refused(
    descriptor: Descriptor, tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], message: str
) -> None:
    save_descriptor(tmp_path / "pca.safetensors", descriptor)
    with pytest.raises(CheckpointError, match=message):
        load_descriptor(rewritten(tmp_path / "pca.safetensors", change))


def test_what_is_no_descriptor_is_refused(tmp_path: Path, descriptor: Descriptor) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_descriptor(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_descriptor(tmp_path)
    (tmp_path / "text").write_text("import os")
    with pytest.raises(CheckpointError, match=r"not a descriptor.*edgeact describe fit"):
        load_descriptor(tmp_path / "text")
    save_file({"mean": np.ones(3)}, tmp_path / "plain")
    with pytest.raises(CheckpointError, match="tensors but no descriptor"):
        load_descriptor(tmp_path / "plain")


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_descriptor_path(tmp_path / "new" / "pca.safetensors") == tmp_path / "new" / "pca.safetensors"
    with pytest.raises(InputError, match="is a folder: give a file"):
        check_descriptor_path(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InputError, match="cannot be written to"):
        check_descriptor_path(tmp_path / "new" / "pca.safetensors")


def test_a_full_disk_keeps_the_older_file(
    descriptor: Descriptor, tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    file = tmp_path / "pca.safetensors"
    file.write_text("older")
    with full_disk(), pytest.raises((OSError, CheckpointError)):
        save_descriptor(file, descriptor)
    assert file.read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_reading_travels_in_a_manifest(descriptor: Descriptor) -> None:
    reading = descriptor.reading(whitened=True)
    found = reading_from_dict(json.loads(json.dumps(reading_to_dict(reading))), DIMS)
    assert found.order == reading.order
    np.testing.assert_array_equal(found.scale, reading.scale)
    for fields in ({}, {"order": "no", "scale": [1.0] * 6}, {"order": "average-normalize", "scale": ["x"]}):
        with pytest.raises(InputError, match="cannot be read as descriptors"):
            reading_from_dict(fields, DIMS)
    for scale in ([1.0], [0.0] * DIMS, [float("inf")] * DIMS):
        with pytest.raises(InputError, match="6 positive numbers"):
            reading_from_dict({"order": "average-normalize", "scale": scale}, DIMS)


def test_examples_classify_by_the_nearest(descriptor: Descriptor) -> None:
    examples = descriptor.examples
    np.testing.assert_array_equal(examples.nearest(3 * examples.descriptors), examples.labels)


def test_the_curve_has_every_row_that_can_be_measured(model: nn.Module, train: FeatureSet, videos: Path) -> None:
    test = open_features(model, SPEC, videos, split="test", hop=8)
    curve = accuracy_by_dimensions(train, test, dims=(2, 5, 500))
    rows = {(row.name, row.dims): row for row in curve.rows}
    assert list(rows) == [
        *(("PCA", d) for d in (2, 5, 500)),
        ("all features", 512),
        ("random", 10),
        ("commonest class", 0),
        ("chance", 0),
    ]
    n = len(train.dataset.samples)
    assert rows["PCA", 500].accuracy == NotMeasured(f"the {n} training videos vary in {n - 1} dimensions")
    fitted = fit(train, model_name="c3d", dims=5)
    right = 0
    for video in test:
        described = fitted.reading(whitened=False).video(fitted.project(video.clips))
        right += int(fitted.examples.svm(described[None]).argmax() == video.sample.label)
    assert rows["PCA", 5].accuracy == pytest.approx(right / len(test.dataset.samples))
    low, high = rows["PCA", 5].ci95 or (1.0, 0.0)
    assert low <= right / len(test.dataset.samples) <= high
    assert rows["chance", 0].accuracy == pytest.approx(1 / len(LABELS))
    assert not isinstance(curve.random_range, NotMeasured)
    json.dumps(curve.to_dict())
