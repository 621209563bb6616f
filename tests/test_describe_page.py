"""The pages of `describe fit` and `describe classify`."""

import dataclasses
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from report_samples import EVIL

from edgeact._describe_page import curve_page, fit_page, variance_rows
from edgeact._page import check_page, render_page, write_page
from edgeact._statistics import wilson_interval
from edgeact.clip import ClipSpec
from edgeact.descriptor import Descriptor, Examples
from edgeact.dimensions import PAPER, PAPER_ALL, Curve, Row
from edgeact.errors import InputError, MissingDependencyError
from edgeact.parity import NotMeasured


def row(name: str, dims: int, share: float) -> Row:
    return Row(name=name, dims=dims, accuracy=share, ci95=wilson_interval(50 * share, 50), paper=PAPER.get(dims))


CURVE = Curve(
    rows=(
        *(row("PCA", d, 0.5) for d in (2, 10)),
        Row(name="PCA", dims=500, accuracy=NotMeasured("too few videos"), paper=PAPER[500]),
        dataclasses.replace(row("all features", 512, 0.68), paper=PAPER_ALL[1]),
        row("random", 10, 0.42),
        row("commonest class", 0, 0.34),
        Row(name="chance", dims=0, accuracy=0.25),
    ),
    layer="fc6",
    order="average-normalize",
    train_videos=120,
    test_videos=50,
    classes=4,
    random_range=(0.4, 0.44),
    skipped=(EVIL,),
)


def descriptor(dims: int) -> Descriptor:
    explained = (0.5 ** np.arange(1, dims + 1)).astype(np.float32)
    return Descriptor(
        components=np.eye(dims, 512, dtype=np.float32),
        mean=np.zeros(512, np.float32),
        variances=10 * explained,
        explained=explained,
        layer="fc6",
        order="average-normalize",
        model="c3d",
        network="0" * 64,
        spec=ClipSpec(),
        hop=8,
        videos=120,
        labels=("a", "b"),
        examples=Examples(
            descriptors=np.eye(2, dims, dtype=np.float32),
            labels=np.arange(2),
            svm_weights=np.eye(2, dims, dtype=np.float32),
            svm_bias=np.zeros(2, np.float32),
        ),
        versions={},
    )


def is_whole_and_alone(page: str) -> None:
    assert page.count("<svg") == 2  # wide and narrow
    assert page.rstrip().endswith("</html>")
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert "--artifact" in page
    assert "<script" not in page
    assert not re.search(r"#0a0b0\d", page)  # every placeholder became a variable


def test_the_curve_is_drawn_beside_the_papers_points() -> None:
    page = curve_page(CURVE, "c3d")
    is_whole_and_alone(page)
    for words in ("paper (other data)", "random directions", "commonest class", "chance", "4,096", "52.8 %", "82.3 %"):
        assert words in page
    assert "PCA, 500: not measured: too few videos" in page
    assert "&lt;script&gt;" in page
    bare = curve_page(dataclasses.replace(CURVE, rows=CURVE.rows[2:3]), "c3d")
    is_whole_and_alone(bare)


@pytest.mark.parametrize("dims", [1, 10, 60])
def test_explained_variance_is_drawn(dims: int) -> None:
    found = descriptor(dims)
    page = fit_page(found, ["broken.mp4"])
    is_whole_and_alone(page)
    rows = list(variance_rows(found))
    assert len(rows) == dims
    assert rows[0] == ("1", "5", "50.0 %", "50.0 %")
    assert rows[-1][3] in page
    assert "skipped: broken.mp4" in page


def test_a_page_that_cannot_be_made_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_page(tmp_path / "page.html") == tmp_path / "page.html"
    with pytest.raises(InputError, match="is a folder: give a file"):
        check_page(tmp_path)
    with pytest.raises(InputError, match="does not exist, or cannot be written to"):
        check_page(tmp_path / "none" / "page.html")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for call in (lambda: check_page(tmp_path / "page.html"), lambda: render_page("_describe.html")):
        with pytest.raises(MissingDependencyError, match=r"edgeact\[report\]"):
            call()


def test_a_full_disk_keeps_the_older_page(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    file = tmp_path / "page.html"
    file.write_text("older")
    with full_disk(), pytest.raises(OSError, match="large"):
        write_page(file, "x" * 100_000)
    assert file.read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 1
