"""Search: the nearest rows by cosine, as distinct moments; and the contact sheet."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from descriptor_samples import SPEC, table
from report_samples import EVIL

from edgeact._sheet import Picture, picture, pictures, sheet, time_in_words
from edgeact.descriptor import unit
from edgeact.errors import InputError, MissingDependencyError
from edgeact.search import Hit, Index, Query, query_of_id, search
from edgeact.video import write_video


def query(descriptor: np.ndarray, **known: object) -> Query:
    return Query(**{"id": "q.mp4", "start_s": 0.0, "end_s": 1.0, "descriptor": descriptor, **known})


def test_the_nearest_rows_are_those_of_the_highest_cosine() -> None:
    generator = np.random.default_rng(0)
    rows, queries = generator.standard_normal((3000, 10)), generator.standard_normal((7, 10)) * 9
    cosines = unit(queries) @ unit(rows).T
    found, places = Index(rows).nearest(queries, 5)
    np.testing.assert_array_equal(places, np.argsort(-cosines, axis=1)[:, :5])
    np.testing.assert_allclose(found, -np.sort(-cosines, axis=1)[:, :5], atol=1e-6)
    assert Index(rows[:3]).nearest(queries, 5)[1].shape == (7, 3)


def test_an_approximate_index_finds_most_of_them_and_says_how_many() -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((5000, 10))
    index = Index(rows, approximate=True)
    exact, found = Index(rows).nearest(rows, 11)[1][:, 1:], index.nearest(rows, 11)[1][:, 1:]
    shared = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(exact, found, strict=True)])
    assert 0.9 < shared < 1
    assert index.recall(10) == pytest.approx(shared, abs=0.01)
    assert index.recall(1) < 1  # a row that finds itself does not count
    assert Index(rows).recall(10) == Index(rows[:1], approximate=True).recall(1) == 1


def test_hits_are_distinct_moments_without_the_query_itself() -> None:
    rows = table()
    index = Index(rows.descriptors)
    wanted = query_of_id(rows, "a/00.mp4", at_s=0.4)
    assert wanted.own == {0}
    hits, left_out = search(index, rows, wanted, 8)
    cosines = unit(rows.descriptors) @ unit(rows.descriptors[0])
    assert [hit.cosine for hit in hits] == sorted((hit.cosine for hit in hits), reverse=True)
    for hit in hits:
        assert hit.cosine == pytest.approx(cosines[hit.row], abs=1e-6)
    moments = [(rows.ids[row], rows.start_s[row], rows.end_s[row]) for row in (0, *(hit.row for hit in hits))]
    for i, (id, start, end) in enumerate(moments):
        for other, other_start, other_end in moments[:i]:
            assert id != other or end < other_start or other_end < start
    assert left_out > 0
    every, _ = search(index, rows, wanted, 1000)
    assert len(every) < len(rows) - 1
    assert {rows.ids[hit.row] for hit in every} == set(rows.ids)  # other moments of the query's own video are hits


def test_a_whole_video_is_asked_by_the_average_of_its_rows() -> None:
    rows = table()
    wanted = query_of_id(rows, "b/01.mp4")
    np.testing.assert_allclose(wanted.descriptor, unit(rows.descriptors[4:8]).mean(0))
    assert (wanted.start_s, wanted.end_s, wanted.label) == (0, pytest.approx(2.4), "b")
    hits, _ = search(Index(rows.descriptors), rows, wanted, 100)
    assert "b/01.mp4" not in {rows.ids[hit.row] for hit in hits}


def test_many_overlapping_rows_do_not_hide_the_next_video() -> None:
    """More of them than are fetched at first."""
    near, far = np.array([1.0, 0.01, 0, 0]), np.array([1.0, 1.0, 0, 0])
    rows = table(videos=2, clips=600)
    descriptors = np.where(np.arange(1200)[:, None] < 600, near, far).astype(np.float32)
    crowded = dataclasses.replace(rows, descriptors=descriptors, start_s=np.zeros(1200), end_s=np.ones(1200))
    hits, left_out = search(Index(descriptors), crowded, query(near), 2)
    assert [crowded.ids[hit.row] for hit in hits] == ["a/00.mp4", "b/01.mp4"]
    assert left_out == 599


def test_what_cannot_be_asked_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table()
    for name, message in (
        ("a/0.mp4", r"'a/0.mp4' is no id of the index: did you mean 'a/0\d.mp4' or .*\(5 ids\)"),
        ("00.mp4", "did you mean 'a/00.mp4'"),
        ("zzz", "whose first is 'a/00.mp4'"),
    ):
        with pytest.raises(InputError, match=message):
            query_of_id(rows, name)
    with pytest.raises(InputError, match=r"no row at 9 s: its rows cover 0 to 2.4 s"):
        query_of_id(rows, "a/00.mp4", at_s=9)
    with pytest.raises(InputError, match="the query has 3 numbers, the rows of the index 4"):
        search(Index(rows.descriptors), rows, query(np.ones(3)), 1)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match=r"faiss-cpu.*edgeact\[describe\]"):
        Index(rows.descriptors)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for i in range(5):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        frames = np.full((60, 48, 64, 3), 40 * i, np.uint8)
        frames[30:, :, :, 0] = 255
        write_video(root / "ab"[i % 2] / f"{i:02}.mp4", frames, 24)
    return root


def test_pictures_are_of_the_clip_at_its_time(videos: Path) -> None:
    early, late = (picture(videos, "a/02.mp4", start, start + 0.5, SPEC) for start in (0.1, 1.7))
    assert early.frames is not None
    assert late.frames is not None
    assert early.frames.shape == (8, 144, 144, 3)
    assert np.abs(early.frames[..., 0].astype(int) - 80).max() < 20
    assert late.frames[..., 0].min() > 200
    whole = picture(videos, "a/02.mp4", 0.0, 2.46, SPEC).frames
    assert whole is not None
    assert (whole[0, 0, 0, 0] < 120, whole[-1, 0, 0, 0] > 200) == (True, True)
    assert picture(None, str(videos / "a/02.mp4"), 0.0, 0.0, SPEC).frames is not None


def test_a_huge_crop_of_anyone_is_shown_smaller(videos: Path) -> None:
    huge = dataclasses.replace(SPEC, short_side=60_000, crop_height=30_000, crop_width=30_000)
    frames = picture(videos, "a/02.mp4", 0.0, 1.0, huge).frames
    assert frames is not None
    assert frames.shape == (8, 1024, 1024, 3)


def test_what_has_no_picture_says_why(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    for root, id, message in (
        (tmp_path, "none.mp4", "no such file; --videos names the folder"),
        (tmp_path, "broken.mp4", "broken.mp4"),
        (tmp_path, "../videos/a/00.mp4", "leaves the folder"),
        (tmp_path, str(videos / "a/00.mp4"), "leaves the folder"),
        (None, "http://localhost:1/x.mp4", "no such file"),
        (tmp_path, "long" * 1000, "File name too long"),
    ):
        found = picture(root, id, 0.0, 1.0, SPEC)
        assert found.frames is None
        assert message in found.missing


def test_the_sheet_shows_query_and_hits(videos: Path) -> None:
    rows = table(root=str(videos))
    wanted = query_of_id(rows, "a/00.mp4")
    hits, _ = search(Index(rows.descriptors), rows, wanted, 3)
    shown = picture(videos, wanted.id, wanted.start_s, wanted.end_s, SPEC)
    page = sheet(rows, wanted, hits, shown, pictures(rows, hits, None, progress=False), ["a note"])
    assert page.count("<figure") == 4
    assert page.count("data:image/jpeg;base64,") == 4 * 2  # strips of eight frames, four to an image
    assert f"{hits[0].cosine:.4f}" in page
    assert "a note" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    same = sum(rows.ids[hit.row][0] == "a" for hit in hits)
    assert f"{same} of 3 are of the query&#39;s class, a." in page


def test_the_sheet_escapes_and_shows_sixty_at_most(tmp_path: Path) -> None:
    rows = table(videos=70, clips=1)
    evil = dataclasses.replace(rows, ids=(EVIL, *rows.ids[1:]), labels=(EVIL,) * 70)
    hits = [Hit(row=row, cosine=0.5) for row in range(70)]
    found = pictures(evil, hits, tmp_path, progress=False)
    page = sheet(evil, query(rows.descriptors[0], id=EVIL, label=EVIL), hits, Picture(None, EVIL), found, [EVIL])
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("<figure") == 61
    assert "the first 60 of 70 hits are shown" in page


def test_times_are_those_of_a_player() -> None:
    assert time_in_words(0, 59.97) == "0:00.0 – 1:00.0"
    assert time_in_words(62.49, 3725.06) == "1:02.5 – 62:05.1"
