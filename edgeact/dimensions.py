"""How many numbers a descriptor needs: accuracy of a linear SVM on held-out videos against the dimensions kept.

Shapes: N videos, D features, d dimensions.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact._format import pct
from edgeact._statistics import wilson_interval
from edgeact.describe import fit_pca, require_sklearn, train_svm
from edgeact.descriptor import Order, Reading, project
from edgeact.features import FeatureSet
from edgeact.parity import NotMeasured

__all__ = ["DIMENSIONS", "PAPER", "PAPER_ALL", "Curve", "Row", "accuracy_by_dimensions"]

DIMENSIONS = (2, 5, 10, 20, 50, 100, 500)

# Tran 2015 (https://arxiv.org/abs/1412.0767), on UCF101: PCA of fc6 and a linear SVM, as section 4 ("C3D is compact",
# figure 5) states in words; all 4,096 in table 3. What else its figure draws has no number in the text.
PAPER = {10: 0.528, 50: 0.726, 100: 0.756, 500: 0.794}
PAPER_ALL = (4096, 0.823)

_RANDOM_DIMS = 10
_RANDOM_SEEDS = 10


@dataclass(frozen=True, kw_only=True)
class Row:
    """One descriptor of the same videos.

    Attributes:
        name: "PCA", "all features", "random" (directions), or the floors "commonest class" and "chance".
        dims: Numbers per video; 0 for what sees none.
        accuracy: Share of the test part that is right; of the random projection, the average over its seeds.
        ci95: Wilson interval.
        explained: Share of the training part's variance that is kept, where it is a PCA.
        paper: What the paper has for that many.
    """

    name: str
    dims: int
    accuracy: float | NotMeasured
    ci95: tuple[float, float] | None = None
    explained: float | None = None
    paper: float | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The rows, and what they were measured on."""

    rows: tuple[Row, ...]
    layer: str
    order: str
    train_videos: int
    test_videos: int
    classes: int
    random_range: tuple[float, float] | NotMeasured
    skipped: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return dataclasses.asdict(self)

    def remarks(self, model: str) -> list[str]:
        """What a reader of the table must know."""
        what = f"linear SVM on relu of {self.layer} of {model}, {self.order}; PCA and SVM trained on "
        remarks = [f"{what}{self.train_videos} videos, judged on {self.test_videos} others of {self.classes} classes"]
        remarks.append("intervals take videos as independent; where several show one scene, they are wider in truth")
        if not isinstance(self.random_range, NotMeasured):
            low, high = self.random_range
            remarks.append(f"random directions: average of {_RANDOM_SEEDS} seeds, {pct(low)} … {pct(high)}")
        remarks.append(f"paper: 13,320 videos of 101 classes (UCF101), {PAPER_ALL[0]:,} features of C3D (Tran 2015)")
        for row in self.rows:
            if isinstance(row.accuracy, NotMeasured):
                remarks.append(f"{row.name}, {row.dims}: not measured: {row.accuracy.not_measured}")
        return remarks + [f"skipped: {line}" for line in self.skipped]


@dataclass(frozen=True)
class _Part:
    """One part of the data.

    Attributes:
        clips: Coordinates `[clips, B]` of each video in every basis that is tried, side by side.
        whole: Descriptors `[N, D]` of all features, as the paper has them: nothing subtracted.
        labels: Classes `[N]`.
    """

    clips: list[NDArray[np.float32]]
    whole: NDArray[np.float32]
    labels: NDArray[np.int64]

    def described(self, columns: slice, order: Order) -> NDArray[np.float64]:
        """Descriptors `[N, d]` in the basis at these columns."""
        reading = Reading(order=order, scale=np.ones(columns.stop - columns.start))
        return np.stack([reading.video(clips[:, columns]) for clips in self.clips])


def _read(videos: FeatureSet, bases_BD: NDArray[np.float64], mean_D: NDArray[np.float64], order: Order) -> _Part:
    """One pass; memory holds B numbers of each clip and D of each video."""
    clips, whole, labels = [], [], []
    everything = Reading(order=order, scale=np.ones(len(mean_D)))
    for video in videos:
        clips.append(project(video.clips, bases_BD, mean_D).astype(np.float32))
        whole.append(everything.video(video.clips).astype(np.float32))
        labels.append(video.sample.label)
    return _Part(clips, np.stack(whole), np.array(labels, np.int64))


def accuracy_by_dimensions(
    train: FeatureSet, test: FeatureSet, *, dims: Sequence[int] = DIMENSIONS, order: Order = "average-normalize"
) -> Curve:
    """The accuracy of each number of dimensions, of all features, and of what knows less.

    Args:
        train: The PCA and every SVM see these alone.
        test: Those that are judged.
        dims: Numbers to try; more than the videos span are not measured.
        order: See `Reading`.

    Raises:
        InputError: The features do not vary, or the videos are of one class.
    """
    require_sklearn()
    possible = len(train.dataset.samples) - 1
    most = max((d for d in dims if d <= possible), default=1)
    pca = fit_pca((video.average for video in train), most, spanned=True)
    kept, features = pca.components.shape
    random = [_random(features, seed) for seed in range(_RANDOM_SEEDS)] if features > _RANDOM_DIMS else []
    bases = np.concatenate([pca.components, *random])
    fitted, judged = (_read(part, bases, pca.mean, order) for part in (train, test))
    classes = len(train.dataset.labels)

    def accuracy(train_Nd: NDArray[Any], test_Nd: NDArray[Any]) -> float:
        weights, bias = train_svm(train_Nd, fitted.labels, classes)
        return float(np.mean((test_Nd @ weights.T + bias).argmax(1) == judged.labels))

    def projected(first: int, count: int) -> float:
        columns = slice(first, first + count)
        return accuracy(fitted.described(columns, order), judged.described(columns, order))

    rows = []
    for d in dims:
        if d <= kept:
            explained = float(pca.explained[:d].sum())
            rows.append(_row("PCA", d, projected(0, d), judged, explained=explained, paper=PAPER.get(d)))
        else:
            spanned = kept if kept < most else possible
            reason = f"the {pca.rows} training videos vary in {spanned} dimensions"
            rows.append(Row(name="PCA", dims=d, accuracy=NotMeasured(reason), paper=PAPER.get(d)))
    rows.append(_row("all features", features, accuracy(fitted.whole, judged.whole), judged, paper=PAPER_ALL[1]))
    shares = [projected(kept + i * _RANDOM_DIMS, _RANDOM_DIMS) for i in range(len(random))]
    if shares:
        rows.append(_row("random", _RANDOM_DIMS, float(np.mean(shares)), judged))
    rows += _floors(fitted, judged, classes)
    return Curve(
        rows=tuple(rows),
        layer=train.layer,
        order=order,
        train_videos=pca.rows,
        test_videos=len(judged.clips),
        classes=classes,
        random_range=(min(shares), max(shares)) if shares else NotMeasured(f"the layer has {features} features"),
        skipped=(*train.skipped, *test.skipped),
    )


def _random(features: int, seed: int) -> NDArray[np.float64]:
    """Random directions, orthonormal as those of a PCA."""
    drawn = np.random.default_rng(seed).standard_normal((features, _RANDOM_DIMS))
    directions: NDArray[np.float64] = np.linalg.qr(drawn)[0].T
    return directions


def _row(
    name: str,
    dims: int,
    share: float,
    judged: _Part,
    *,
    explained: float | None = None,
    paper: float | None = None,
) -> Row:
    n = len(judged.labels)
    return Row(
        name=name, dims=dims, accuracy=share, ci95=wilson_interval(share * n, n), explained=explained, paper=paper
    )


def _floors(fitted: _Part, judged: _Part, classes: int) -> list[Row]:
    """What is right without looking."""
    commonest = int(np.bincount(fitted.labels, minlength=classes).argmax())
    floor = _row("commonest class", 0, float(np.mean(judged.labels == commonest)), judged)
    return [floor, Row(name="chance", dims=0, accuracy=1 / classes)]
