"""The motion set: motion tells the class, a single frame does not."""

import itertools

import numpy as np
import pytest

from edgeact import motion
from edgeact.data import load_grid, open_dataset
from edgeact.errors import InputError, UnknownNameError
from edgeact.motion import MOTION_CLASSES, MOTION_SPEC, REVERSED, motion_set, render, write_motion_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_motion_set(tmp_path_factory.mktemp("motion") / "set", train_per_class=16, test_per_class=8)


def load(folder, split):
    dataset = open_dataset(folder, split=split)
    grids = np.stack([load_grid(sample, MOTION_SPEC, None) for sample in dataset.samples])
    return grids, np.array([sample.label for sample in dataset.samples])


def test_names():
    assert len(MOTION_CLASSES) >= 10
    assert set(REVERSED) == set(REVERSED.values()) == set(MOTION_CLASSES)
    assert all(REVERSED[REVERSED[name]] == name for name in MOTION_CLASSES)
    assert sum(REVERSED[name] != name for name in MOTION_CLASSES) >= 8


def test_real_files_with_a_split(folder):
    train, val, test = (open_dataset(folder, split=split) for split in ("train", "val", "test"))
    assert train.labels == test.labels == MOTION_CLASSES
    assert [len(part.samples) // len(MOTION_CLASSES) for part in (train, val, test)] == [14, 2, 8]
    grid = load_grid(test.samples[0], MOTION_SPEC, None)
    assert grid.shape == (16, motion._SIDE, motion._SIDE, 3)
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_deterministic_whatever_the_threads_and_the_size(folder, tmp_path):
    again = write_motion_set(tmp_path / "again", train_per_class=1, test_per_class=1, workers=1)
    for path in again.rglob("*.mp4"):
        assert path.read_bytes() == (folder / path.relative_to(again)).read_bytes()
    other = write_motion_set(tmp_path / "other", train_per_class=1, test_per_class=0, seed=1)
    path = next(other.rglob("*.mp4"))
    assert path.read_bytes() != (folder / path.relative_to(other)).read_bytes()


def steps(name, pose, count=200):
    """Change of one pose (x, y, angle, log radius) from frame to frame over many clips, on its torus."""
    period = (motion._SIDE, motion._SIDE, 2 * np.pi, np.log(motion._RADIUS_MAX / motion._RADIUS_MIN))[pose]
    poses = np.stack([motion._poses(name, np.random.default_rng([1, i]))[pose] for i in range(count)])
    change = np.diff(np.log(poses) if pose == 3 else poses, axis=1)
    return (change + period / 2) % period - period / 2


@pytest.mark.parametrize("name", [name for name in MOTION_CLASSES if not name.startswith(("still", "shake", "pulse"))])
def test_backwards_is_the_opposite_class(name):
    pose = {"l": 0, "r": 0, "u": 1, "d": 1, "z": 3}[name[0]] if not name.startswith("rotate") else 2
    forward, opposite = steps(name, pose), steps(REVERSED[name], pose)
    np.testing.assert_allclose(-forward[:, ::-1], opposite, atol=1e-9)  # the same random numbers: equal clip by clip
    assert len(np.unique(np.sign(forward))) == 1


@pytest.mark.parametrize("name", ["shake_horizontal", "shake_vertical", "pulse"])
def test_there_and_back_turns_within_every_clip(name):
    signs = np.sign(steps(name, {"shake_horizontal": 0, "shake_vertical": 1, "pulse": 3}[name]))
    for start in range(16 - MOTION_SPEC.frames + 1):
        window = signs[:, start : start + MOTION_SPEC.frames - 1]
        assert (window.min(axis=1) < window.max(axis=1)).all()


@pytest.mark.parametrize("frame", [0, 8, 15])
def test_poses_of_a_frame_have_one_distribution(frame):
    poses = {}
    for index, name in enumerate(MOTION_CLASSES):
        drawn = [motion._poses(name, np.random.default_rng([index, i])) for i in range(600)]
        x, y, angle, radius = np.array([[axis[frame] for axis in pose] for pose in drawn]).T
        poses[name] = np.stack([x / motion._SIDE, y / motion._SIDE, angle / (2 * np.pi) % 1, np.log(radius)])
        poses[name][3] = (poses[name][3] - np.log(12)) / np.log(32 / 12)
    limit = 2.23 / np.sqrt(600)  # Kolmogorov-Smirnov against uniform: one in 10 000
    for values in itertools.chain.from_iterable(poses.values()):
        gap = np.abs(np.sort(values) - (np.arange(600) + 0.5) / 600).max()
        assert gap < limit


def fit(features, labels, count, ridge):
    """Linear one-vs-rest classifier by ridge regression."""
    mean, std = features.mean(0), features.std(0) + 1e-6
    x = np.c_[(features - mean) / std, np.ones(len(features))]
    weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ np.eye(count)[labels])
    return lambda new: (np.c_[(new - mean) / std, np.ones(len(new))] @ weights).argmax(1)


def motion_features(grids):
    """How the frame changes, against its gradients: sums of It*Ix, It*Iy, and those about the moving region."""
    gray = grids[:, 4:12].astype(np.float64).mean(-1)
    change = np.diff(gray, axis=1)
    gy, gx = np.gradient((gray[:, 1:] + gray[:, :-1]) / 2, axis=(2, 3))
    energy = np.abs(change)
    total = energy.sum((2, 3), keepdims=True) + 1e-6
    axis = np.arange(float(motion._SIDE))
    x = axis[None, None, None] - (energy * axis[None, None, None]).sum((2, 3), keepdims=True) / total
    y = axis[None, None, :, None] - (energy * axis[None, None, :, None]).sum((2, 3), keepdims=True) / total
    norm = (gx**2 + gy**2).sum((2, 3)) + 1e-6
    flows = [-change * gx, -change * gy, -change * (gy * x - gx * y) / 10, -change * (gx * x + gy * y) / 10]
    per_step = np.stack([flow.sum((2, 3)) / norm for flow in flows], -1)
    return np.concatenate([per_step.mean(1), np.abs(per_step).mean(1), np.median(per_step, 1)], -1)


def test_one_frame_is_at_chance_and_motion_is_not(folder):
    (train, train_labels), (test, test_labels) = load(folder, "train"), load(folder, "test")
    chance, count = 1 / len(MOTION_CLASSES), len(MOTION_CLASSES)
    limit = chance + 3.5 * np.sqrt(chance * (1 - chance) / len(test_labels))
    for frame in (0, 8, 15):
        small = [grids[:, frame, ::4, ::4].reshape(len(grids), -1).astype(np.float64) for grids in (train, test)]
        linear = fit(small[0], train_labels, count, 300)(small[1])
        distance = (small[1] ** 2).sum(1)[:, None] - 2 * small[1] @ small[0].T + (small[0] ** 2).sum(1)
        nearest = train_labels[distance.argmin(1)]
        assert (linear == test_labels).mean() < limit
        assert (nearest == test_labels).mean() < limit
    predict = fit(motion_features(train), train_labels, count, 1.0)
    forward = predict(motion_features(test))
    assert (forward == test_labels).mean() > 4 * chance
    backward_labels = np.array([MOTION_CLASSES.index(REVERSED[MOTION_CLASSES[label]]) for label in test_labels])
    backward = predict(motion_features(test[:, ::-1]))
    assert (backward == backward_labels).mean() > 4 * chance


def test_motion_set_is_made_once_and_again_where_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEACT_CACHE", str(tmp_path))
    first = motion_set(train_per_class=1, test_per_class=1)
    assert first.parent == tmp_path
    made = (first / "split.csv").stat().st_mtime_ns
    assert motion_set(train_per_class=1, test_per_class=1) == first
    assert (first / "split.csv").stat().st_mtime_ns == made


def test_an_interrupted_set_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(motion, "write_video", fail)
    with pytest.raises(OSError, match="No space left"):
        write_motion_set(tmp_path / "set", train_per_class=1, test_per_class=1)
    assert not list(tmp_path.iterdir())


def test_progress_goes_to_stderr(tmp_path, capfd):
    write_motion_set(tmp_path / "a", train_per_class=0, test_per_class=1, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "motion set" in err


def test_refuses(tmp_path):
    with pytest.raises(InputError, match="exists already"):
        write_motion_set(tmp_path, train_per_class=1, test_per_class=1)
    for numbers in ((0, 0, 1), (-1, 2, 1), (1, 1, 0)):
        train, test, workers = numbers
        with pytest.raises(InputError, match="cannot be made: counts start at 0"):
            write_motion_set(tmp_path / "a", train_per_class=train, test_per_class=test, workers=workers)
    with pytest.raises(UnknownNameError, match="unknown motion class 'lift': did you mean 'left'"):
        render("lift", np.random.default_rng(0))
