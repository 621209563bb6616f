"""The page: what it says, that nothing hostile gets through, and that it stands alone."""

import base64
import dataclasses
import io
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from report_samples import EVIL, accuracy, report, sustained, unmeasured, without_reference

from edgeact._film import film_strip
from edgeact._plots import placement_plot, training_plot
from edgeact.accuracy import Accuracy, compare_accuracy
from edgeact.errors import MissingDependencyError
from edgeact.parity import Gates, Report
from edgeact.placement import PlacedLayer, Placement
from edgeact.report import write_html

CURVES = [
    {"epoch": e, "lr": 0.1 / (e + 1), "train_loss": 2.0 / (e + 1), "val_loss": 2.1 / (e + 1), "val_top1": e / 9}
    for e in range(9)
]


def frames(count: int, shape: tuple[int, int] = (64, 64)) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, *shape, 3), dtype=np.uint8)


class Page(HTMLParser):
    """Tags, ids, references and text of a page; unbalanced tags fail."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        assert not self._open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        assert not [name for name, _ in attrs if name.startswith("on")]
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("src", "href", "xlink:href"):
                self.links.append(value or "")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)


def page(path: Path, shown: Report, **given: Any) -> Page:
    write_html(shown, path, **given)
    return Page(path)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of a page's time; tests of the rest go without."""
    for name in ("drop_plot", "latency_plot", "placement_plot", "sustained_plot", "training_plot"):
        monkeypatch.setattr(f"edgeact._report_page.{name}", lambda *_: "")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page with everything in it."""
    shown = report(held=False)
    assert isinstance(shown.accuracy, Accuracy)
    given = {flip.clip: frames(8) for flip in shown.accuracy.flips}
    return page(tmp_path_factory.mktemp("full") / "r.html", shown, clip_frames=given, curves=CURVES)


def test_the_page_of_a_model_that_held(tmp_path: Path) -> None:
    shown = page(tmp_path / "r.html", report(), curves=CURVES)
    assert "Held Everything that was measured stays within its limits." in shown.text
    assert "Not measured" not in shown.text
    for words in (
        "at least 45 dB",
        "312 MB",
        "12.1 MB",
        "brgconv 50",
        "openvino 2026.4.1",
        "random weights",
        "Training",
    ):
        assert words in shown.text, words
    assert shown.tags["svg"] == 1 + 4 * 2  # the mark; drop, latency and training, each wide and narrow
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_the_page_of_a_model_that_fell_short_says_why_first(tmp_path: Path) -> None:
    report_ = report(held=False)
    assert isinstance(report_.accuracy, Accuracy)
    text = page(tmp_path / "r.html", report_).text
    first = text[text.index("Fell short The exported") : text.index("Top-1 accuracy")]
    for failure in report_.failures:
        kind, _, words = failure.partition(": ")
        assert f"{kind}. {words}" in first
    assert "artifact largest step" in text
    assert f"{report_.accuracy.clips_to_resolve:,} more than the 60 here" in text
    assert "Fallback. MaxPool3d" in text


@pytest.mark.usefixtures("no_plots")
def test_the_page_says_why_a_number_is_not_there(tmp_path: Path) -> None:
    text = page(tmp_path / "r.html", unmeasured()).text
    assert "Not measured: numerics, accuracy, latency, placement." in text
    for name in ("numerics", "accuracy", "latency", "placement"):
        assert f"Not measured. no {name} here" in text
    assert "No speed-up: PyTorch is not used here." in page(tmp_path / "r.html", without_reference()).text


@pytest.mark.usefixtures("no_plots")
def test_labels_ids_and_everything_else_untrusted_are_escaped(tmp_path: Path) -> None:
    labels = tuple(f"{EVIL}{i}" for i in range(12))
    found = accuracy(12, 1.5, labels)
    found = dataclasses.replace(found, flips=tuple(dataclasses.replace(f, clip=EVIL + f.clip) for f in found.flips))
    fields: dict[str, Any] = dict.fromkeys(("bundle", "target", "model", "precision", "form", "date"), EVIL)
    placement = Placement(
        accelerated_ops=1,
        fallback_ops=1,
        fallback=(EVIL,),
        kind=EVIL,
        kernels={EVIL: 1},
        layers=(PlacedLayer(name=EVIL + "$", units={EVIL: 1}, macs=1),),
    )
    hostile = report(
        accuracy=found,
        placement=placement,
        failures=(EVIL, f"{EVIL}: {EVIL}"),
        held=False,
        notes=(EVIL,) * 20,
        environment={EVIL: EVIL},
        sustained=sustained(3, reason=EVIL),
        artifact={"files": [EVIL], "size_mb": 1.0},
        **fields,
    )
    shown = page(tmp_path / "r.html", hostile, clip_frames={found.flips[0].clip: frames(16)})
    assert shown.tags["script"] == 0
    assert shown.tags["img"] == 2
    assert "<script" not in shown.source
    assert "<script>alert('x')</script>" in shown.text  # as text


def test_the_page_stands_alone_and_its_ids_are_unique(full: Page) -> None:
    assert full.tags["script"] == full.tags["link"] == full.tags["iframe"] == 0
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in full.links)
    assert not re.search(r"@import|https?://|url\((?!#)", full.source)
    assert len(full.ids) == len(set(full.ids))
    references = re.findall(r'(?:href="#|url\(#)([^")]+)', full.source)
    assert references
    assert set(references) <= set(full.ids)


def test_plots_follow_the_colour_scheme(full: Page) -> None:
    colours = re.findall(
        r"(?:fill|stroke): ([^;\"]+)", "".join(re.findall(r'<svg class="plot.*?</svg>', full.source, re.S))
    )
    assert colours
    assert {colour for colour in colours if not colour.startswith("var(--")} <= {"none"}


def test_the_same_report_gives_the_same_page(tmp_path: Path) -> None:
    first, second = (page(tmp_path / name, report(), curves=CURVES[:2]).source for name in ("a.html", "b.html"))
    assert first == second


@pytest.mark.parametrize(("sensors", "axes"), [(True, 2), (False, 1)])
def test_minutes_are_drawn_with_the_temperature_below(tmp_path: Path, sensors: bool, axes: int) -> None:
    shown = page(tmp_path / "r.html", report(sustained=sustained(sensors=sensors)))
    assert "6.67 minutes of back-to-back runs. it slowed down after 210 s." in shown.text
    assert "power_w: not measured: no power sensor" in shown.text
    wide = re.search(r'<svg class="plot wide"[^>]*aria-label="Latency over minutes".*?</svg>', shown.source, re.S)
    assert wide is not None
    assert len(re.findall(r'id="sustained-wide-axes_', wide[0])) == axes
    assert "(the line: where it slowed down)" in wide[0]
    assert shown.source.count("<td>15 ms</td>") >= 10
    assert shown.text.count("1300") == (24 if sensors else 0)


@pytest.mark.usefixtures("no_plots")
def test_film_strips_of_the_first_clips_and_how_many_are_left_out(tmp_path: Path) -> None:
    shown = report(held=False, classes=40)
    assert isinstance(shown.accuracy, Accuracy)
    flips = shown.accuracy.flips
    assert len(flips) > 30
    given = {flip.clip: frames(16, (112, 160)) for flip in flips[-20:]} | {"another clip": frames(4)}
    found = page(tmp_path / "r.html", shown, clip_frames=given)
    assert f"24 are shown, {len(flips) - 24} left out" in found.text
    assert 0 < found.tags["img"] <= 2 * 20
    assert flips[-1].clip in found.text  # clips with frames come first
    assert "another clip" not in found.text
    assert (tmp_path / "r.html").stat().st_size < 1_000_000  # noise is the worst that JPEG can meet


@pytest.mark.parametrize(("count", "groups"), [(1, [1]), (3, [3]), (6, [4, 2]), (8, [4, 4]), (32, [4, 4])])
def test_a_film_strip_shows_the_frames(count: int, groups: list[int]) -> None:
    import av

    clip = np.full((count, 48, 65, 3), 255, np.uint8) * np.linspace(0, 1, count)[:, None, None, None]
    strip = film_strip(clip.astype(np.uint8))
    assert [frames_ for _, frames_ in strip] == groups
    uri, shown = strip[-1]
    with av.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])), "r", format="mjpeg") as file:
        image = next(file.decode(video=0)).to_ndarray(format="rgb24")
    assert image.shape == (48, 64 * shown + 2 * (shown - 1), 3)
    assert image[24, -20].mean() == pytest.approx(255 * (count > 1), abs=6)  # the last frame of the clip


@pytest.mark.usefixtures("no_plots")
def test_four_hundred_classes_show_the_most_confused(tmp_path: Path) -> None:
    shown = report(held=False, classes=400)
    found = page(tmp_path / "r.html", shown)
    assert "The 20 most confused of 400 classes" in found.text
    assert found.tags["td"] < 700
    assert (tmp_path / "r.html").stat().st_size < 300_000


@pytest.mark.usefixtures("no_plots")
def test_many_classes_of_which_none_is_confused(tmp_path: Path) -> None:
    perfect = compare_accuracy(
        np.eye(30), np.eye(30), np.arange(30), clips=list("c" * 30), labels=list("l" * 30), max_drop_pt=0.0
    )
    text = page(tmp_path / "r.html", report(accuracy=perfect, gates=Gates())).text
    assert "The artifact confuses none of the 30 classes" in text
    assert "Clips to resolve a drop of one clip" in text
    assert "Clips that flip" not in text


@pytest.mark.parametrize(
    ("curves", "panels"),
    [
        ([], []),
        ([{"epoch": 0, "train_loss": 1.0}], ["Loss"]),
        ([{"val_top1": 0.5}, {"val_top1": float("nan")}, {"val_top1": "<b>"}], ["Top-1, held out (%)"]),
        ([{"epoch": 1, "lr": float("inf"), "seconds": 3.0}], []),
        (CURVES, ["Loss", "Top-1, held out (%)", "Learning rate"]),
    ],
)
def test_curves_draw_what_is_there(curves: list[Any], panels: list[str]) -> None:
    plot = training_plot(curves)
    assert [name for name in ("Loss", "Top-1, held out (%)", "Learning rate") if f">{name}<" in plot] == panels


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "r.html").write_text("before")
    with pytest.raises(
        MissingDependencyError, match=re.escape(f"needs {package}, which is not installed: pip install")
    ):
        write_html(report(), tmp_path / "r.html")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.usefixtures("no_plots")
def test_a_page_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_html(report(), tmp_path / "folder")
    with pytest.raises(FileNotFoundError, match=r"absent/\.r\.html"):
        write_html(report(), tmp_path / "absent" / "r.html")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_a_picture_of_the_placement() -> None:
    layers = (
        PlacedLayer(name="stem", units={"NPU": 2}, macs=3, ms=1.0),
        PlacedLayer(name="a$_b", units={"NPU": 1, "CPU": 1}, fallback_ops=1, macs=1, ms=3.0),
        PlacedLayer(name="名前.relu", units={"NPU": 1}, macs=0),
    )
    placement = Placement.of((), "measured")
    drawn = placement_plot(dataclasses.replace(placement, layers=layers))
    for text in ("% of the MACs", "% of the layers' time", "with a fallback", "NPU", "a$_b", "stem"):
        assert drawn.count(f">{text}<") >= 2, "wide and narrow"
    assert "名前" not in drawn, "it computes nothing"
    untimed = tuple(dataclasses.replace(layer, ms=None) for layer in layers)
    assert "% of the layers' time" not in placement_plot(dataclasses.replace(placement, layers=untimed))
    assert placement_plot(placement) == "", "nothing is told of the layers"
