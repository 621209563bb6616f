"""Labelled video folders, their errors, parallel decoding and the cache."""

import os
import threading

import numpy as np
import pytest

from edgeact import _cache, data
from edgeact.clip import ClipSpec, crop_center
from edgeact.data import cache_dir, iter_clips, load_grid, open_dataset
from edgeact.errors import InputError, UnknownNameError, VideoError
from edgeact.video import read_clip, read_grid, write_video

SPEC = ClipSpec(frames=4, frame_stride=1, short_side=32, crop_height=24, crop_width=24)
HEADER = "path,label,group,split\n"


def clip(path, frames=6, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (frames, 32, 40, 3), dtype=np.uint8)
    write_video(path, noise, 12, threads=1, options={"preset": "ultrafast"})
    return path


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def table(tmp_path):
    rows = [
        ("b/2.mp4", "run", "train"),
        ("b/1.mp4", "run", "test"),
        ("a/1.mp4", "jump", "test"),
        ("a/0.mp4", "jump", "train"),
    ]
    for seed, (path, _, _) in enumerate(rows):
        clip(tmp_path / "set" / path, seed=seed)
    lines = [f"{path},{label},g{i},{split}" for i, (path, label, split) in enumerate(rows)]
    (tmp_path / "set" / "split.csv").write_text(HEADER + "\n".join(lines) + "\n")
    return tmp_path / "set"


def ids(dataset):
    return [sample.id for sample in dataset.samples]


def test_split_csv(table):
    test = open_dataset(table, split="test")
    assert test.labels == ("jump", "run")
    assert [(s.id, s.label, s.path) for s in test.samples] == [
        ("a/1.mp4", 0, table / "a/1.mp4"),
        ("b/1.mp4", 1, table / "b/1.mp4"),
    ]
    assert ids(open_dataset(str(table), split="train")) == ["a/0.mp4", "b/2.mp4"]
    assert len(open_dataset(table, split="all").samples) == 4
    given = open_dataset(table, split="test", labels=["run", "jump"])
    assert given.labels == ("run", "jump")
    assert [sample.label for sample in given.samples] == [1, 0]


def test_class_folders_hold_out_the_same_fifth(tmp_path):
    for number in range(60):
        touch(tmp_path / "run" / f"{number}.mp4")
        touch(tmp_path / "jump" / "deep" / f"{number}.AVI")
    touch(tmp_path / "run" / "notes.txt")
    touch(tmp_path / "run" / ".hidden.mp4")
    touch(tmp_path / ".git" / "a.mp4")
    train, test = open_dataset(tmp_path, split="train"), open_dataset(tmp_path, split="test")
    assert train.labels == ("jump", "run")
    assert not set(ids(train)) & set(ids(test))
    val = open_dataset(tmp_path, split="val")
    assert len(train.samples) + len(val.samples) + len(test.samples) == 120
    assert len(open_dataset(tmp_path, split="all").samples) == 120
    assert 12 <= len(test.samples) <= 36
    touch(tmp_path / "run" / "new.mp4")
    assert set(ids(test)) <= {*ids(open_dataset(tmp_path, split="test"))}


def test_two_clips_are_one_on_each_side(tmp_path):
    for name in ("run/1.mp4", "run/2.mp4"):
        touch(tmp_path / name)
    assert len(open_dataset(tmp_path, split="train").samples) == len(open_dataset(tmp_path, split="test").samples) == 1


def test_val_is_whole_groups_of_train(tmp_path):
    lines, group_of = [], {}
    for number in range(100):
        path, group = f"{number}.mp4", f"g{number // 3}"
        touch(tmp_path / path)
        group_of[path] = group
        lines.append(f"{path},{'run' if number % 2 else 'jump'},{group},{'test' if number >= 90 else 'train'}")
    (tmp_path / "split.csv").write_text(HEADER + "\n".join(lines) + "\n")
    train, val, test = ({*ids(open_dataset(tmp_path, split=split))} for split in ("train", "val", "test"))
    assert {*map(group_of.get, train)} & {*map(group_of.get, val)} == set()
    assert test == {f"{number}.mp4" for number in range(90, 100)}
    assert (len(train), len(val)) == (90 - len(val), len(val))
    assert 10 <= len(val) <= 14  # 15 % of each class's 45, in groups of 1 and 2
    assert {sample.label for sample in open_dataset(tmp_path, split="val").samples} == {0, 1}


@pytest.mark.parametrize(
    ("folders", "test"), [(("train", "val", "test"), ["test/run/0.mp4"]), (("train", "val"), ["val/run/0.mp4"])]
)
def test_split_folders(tmp_path, folders, test):
    for folder in folders:
        touch(tmp_path / folder / "run" / "0.mp4")
    assert ids(open_dataset(tmp_path, split="train")) == ["train/run/0.mp4"]
    assert ids(open_dataset(tmp_path, split="test")) == test
    if "test" in folders:
        assert ids(open_dataset(tmp_path, split="val")) == ["val/run/0.mp4"]
    else:
        with pytest.raises(InputError, match=r"'run' in the 'val' split.*two groups of training clips are needed"):
            open_dataset(tmp_path, split="val")
    assert len(open_dataset(tmp_path, split="all").samples) == len(folders)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na,b\n", "missing column 'group', 'split'; it needs path,label,group,split"),
        ("", "missing column 'path'"),
        (HEADER, "lists no clips"),
        (HEADER + "a/0.mp4,jump,g,train\na/9.mp4,jump,g,train\n", "lists 1 missing of 2 files: 'a/9.mp4'"),
        (HEADER + "a/0.mp4,jump,g,dev\n", "line 2: unknown split 'dev'; allowed: train, val, test"),
        (HEADER + "a/0.mp4,,g,train\n", "line 2: path and label must not be empty"),
        (HEADER + "../secret.mp4,jump,g,train\n", r"line 2: '\.\./secret.mp4' leaves the folder"),
        (HEADER + "/etc/passwd,jump,g,train\n", "line 2: '/etc/passwd' leaves the folder"),
        (HEADER + "a\\0.mp4,jump,g,train\n", "leaves the folder; paths are relative, with forward slashes"),
        (HEADER + "a/0.mp4,jump,g,train\na/0.mp4,jump,g,test\n", "lists 'a/0.mp4' more than once"),
        (HEADER + "a/0.mp4,jump,g,train\n", "no clips of the class 'jump' in the 'test' split"),
    ],
)
def test_bad_split_csv(table, content, message):
    (table / "split.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        open_dataset(table, split="test")


def test_split_csv_that_is_not_text(table):
    (table / "split.csv").write_bytes(b"path,label\xff\xfe\n")
    with pytest.raises(InputError, match="not a UTF-8 CSV file"):
        open_dataset(table, split="test")


def test_bad_folders(tmp_path):
    with pytest.raises(InputError, match="absent: no such folder; give a folder"):
        open_dataset(tmp_path / "absent", split="test")
    with pytest.raises(InputError, match="no class folders"):
        open_dataset(tmp_path, split="test")
    touch(tmp_path / "file")
    with pytest.raises(InputError, match="file: is a file"):
        open_dataset(tmp_path / "file", split="test")
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="the class 'run' has no clips"):
        open_dataset(tmp_path, split="test")
    touch(tmp_path / "run" / "only.mp4")
    with pytest.raises(InputError, match="no clips of the class 'run' in the 'test' split"):
        open_dataset(tmp_path, split="test")
    with pytest.raises(UnknownNameError, match="unknown split 'tset': did you mean 'test'"):
        open_dataset(tmp_path, split="tset")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["jump", "run", "swim"], "the model knows 'swim', which the data lacks"),
        (["jump"], "the data has 'run', which the model does not know"),
        (
            [str(i) for i in range(9)],
            "'0', '1', '2', '3', '4' and 4 more, which the data lacks; the data has 'jump', 'run'",
        ),
        (["jump", "jump", "run"], "labels repeat: 'jump'"),
    ],
)
def test_labels_of_another_model(table, labels, message):
    with pytest.raises(InputError, match=message):
        open_dataset(table, split="test", labels=labels)


@pytest.mark.parametrize("workers", [1, 3])
def test_iter_clips_is_in_order(table, workers, tmp_path):
    dataset = open_dataset(table, split="all")
    for _ in range(2):  # decoded, then cached
        pairs = list(iter_clips(dataset, SPEC, workers=workers, cache=tmp_path / "cache"))
        assert [sample.id for sample, _ in pairs] == ids(dataset)
        for sample, frames in pairs:
            np.testing.assert_array_equal(frames, read_clip(sample.path, SPEC).frames)
            assert frames.flags.writeable
    assert len(list((tmp_path / "cache").rglob("*.rgb"))) == 4


def test_corrupt_video(table, capfd):
    (table / "b/1.mp4").write_bytes(b"junk" * 100)
    dataset = open_dataset(table, split="all")
    with pytest.raises(VideoError, match=r"b/1.mp4: not a video"):
        list(iter_clips(dataset, SPEC, cache=None))
    skipped = []
    kept = [
        sample.id
        for sample, _ in iter_clips(dataset, SPEC, cache=None, on_corrupt="skip", skipped=skipped, progress=True)
    ]
    assert kept == ["a/0.mp4", "a/1.mp4", "b/2.mp4"]
    assert len(skipped) == 1
    assert "b/1.mp4: not a video" in skipped[0]
    out, err = capfd.readouterr()
    assert out == ""
    assert "decoding" in err


def test_nothing_usable(table):
    for path in table.rglob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(VideoError, match="none of 4 videos can be used"):
        list(iter_clips(open_dataset(table, split="all"), SPEC, cache=None, on_corrupt="skip"))


def test_bad_arguments(table):
    dataset = open_dataset(table, split="all")
    with pytest.raises(InputError, match="workers is 0"):
        next(iter_clips(dataset, SPEC, cache=None, workers=0))
    with pytest.raises(UnknownNameError, match="unknown on_corrupt 'skp'"):
        next(iter_clips(dataset, SPEC, cache=None, on_corrupt="skp"))


def test_leaving_early_stops_the_threads(table):
    def threads():
        return [thread for thread in threading.enumerate() if thread.name.startswith("edgeact-decode")]

    clips = iter_clips(open_dataset(table, split="all"), SPEC, cache=None)
    next(clips)
    assert threads()
    clips.close()
    assert not threads()


def test_notes_survive_the_cache(table, tmp_path):
    clip(table / "a/0.mp4", frames=3)
    for _ in range(2):
        notes = []
        list(iter_clips(open_dataset(table, split="all"), SPEC, cache=tmp_path / "cache", notes=notes))
        assert notes == ["a/0.mp4: looped: 3 grid frames for a clip of 4"]


def test_grid_is_mapped_from_the_cache(table, tmp_path, monkeypatch):
    sample = open_dataset(table, split="all").samples[0]
    cache = tmp_path / "cache"
    expected = read_grid(sample.path, SPEC)[0]
    np.testing.assert_array_equal(load_grid(sample, SPEC, None), expected)
    load_grid(sample, SPEC, cache)
    monkeypatch.setattr(data, "read_grid", lambda *args: pytest.fail("decoded again"))
    grid = load_grid(sample, SPEC, cache)
    assert isinstance(grid, np.memmap)
    np.testing.assert_array_equal(grid, expected)
    np.testing.assert_array_equal(crop_center(grid, SPEC)[1:5], read_clip(sample.path, SPEC).frames)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: f.write_bytes(b""),
        lambda f: f.write_bytes(f.read_bytes()[:-9]),
        lambda f: f.unlink(),
        lambda f: f.with_suffix(".json").unlink(),
        lambda f: f.with_suffix(".json").write_text("[]"),
        lambda f: f.with_suffix(".json").write_text('{"shape": [1, 2], "notes": []}'),
        lambda f: f.with_suffix(".json").write_text('{"shape": null, "notes": []}'),
    ],
)
def test_damaged_cache_is_decoded_again(table, tmp_path, damage):
    sample = open_dataset(table, split="all").samples[0]
    expected = np.array(load_grid(sample, SPEC, tmp_path / "cache"))
    (file,) = (tmp_path / "cache").rglob("*.rgb")
    damage(file)
    np.testing.assert_array_equal(load_grid(sample, SPEC, tmp_path / "cache"), expected)
    assert file.stat().st_size == expected.size


def test_a_changed_file_or_spec_is_decoded_again(table, tmp_path):
    sample = open_dataset(table, split="all").samples[0]
    first = np.array(load_grid(sample, SPEC, tmp_path / "cache"))
    clip(sample.path, seed=9)
    os.utime(sample.path, ns=(1, 1))
    assert not np.array_equal(load_grid(sample, SPEC, tmp_path / "cache"), first)
    assert (
        load_grid(sample, ClipSpec(frames=4, short_side=28, crop_height=24, crop_width=24), tmp_path / "cache").shape[1]
        == 28
    )


def test_full_disk_leaves_nothing(table, tmp_path, monkeypatch):
    def full(path, content):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_cache.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device"):
        list(iter_clips(open_dataset(table, split="all"), SPEC, cache=tmp_path / "cache", on_corrupt="skip"))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEACT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("EDGEACT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "edgeact"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "edgeact"
