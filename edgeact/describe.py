"""Fits a descriptor: features of the training part of labelled videos, their PCA, and a linear SVM on what is left.

videos ─► features, averaged per video ─► incremental PCA ─► descriptors ─► linear SVM ─► Descriptor

Memory holds a few hundred averages at a time and the d numbers of each video, however many videos there are.

Shapes: N videos, D features, d dimensions, K classes.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeact.clip import ClipSpec
from edgeact.data import Split, open_dataset
from edgeact.descriptor import Descriptor, Examples, Order, Reading, check_order, project
from edgeact.errors import InputError, MissingDependencyError
from edgeact.evaluate import calibration_root
from edgeact.features import FeatureSet

if TYPE_CHECKING:
    from torch import nn

    from edgeact._workers import Elsewhere

__all__ = [
    "LAYER",
    "ORDER",
    "Pca",
    "SvmError",
    "fit",
    "fit_pca",
    "open_features",
    "require_sklearn",
    "train_svm",
]

LAYER = "fc6"  # of C3D: Tran 2015, section 3.3
ORDER: Order = "average-normalize"  # the same

_MOTION_VIDEOS = 480  # of the synthetic set's training part
_BATCH_VIDEOS = 256
_SPARE = 64  # components kept beside those asked for while videos are added: what a batch cuts off is lost to the rest
_FLAT = 1e-6  # of the largest variance: float32 features hold no more


class SvmError(InputError):
    """A linear SVM cannot be trained on these videos."""


@dataclass(frozen=True, kw_only=True)
class Pca:
    """Principal components of N rows.

    Attributes:
        components: `[d, D]`, orthonormal; the number of largest magnitude in each is positive.
        mean: `[D]`.
        variances: `[d]`.
        explained: Shares `[d]` of the whole variance.
        rows: N.
    """

    components: NDArray[np.float64]
    mean: NDArray[np.float64]
    variances: NDArray[np.float64]
    explained: NDArray[np.float64]
    rows: int


def require_sklearn() -> None:
    """Refuse to go on without scikit-learn.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as exc:
        raise MissingDependencyError("scikit-learn", "describe", "fitting a descriptor") from exc


def open_features(
    model: "nn.Module",
    spec: ClipSpec,
    data: str | os.PathLike[str],
    *,
    split: Split,
    layer: str = LAYER,
    hop: int | None = None,
    on_corrupt: Literal["skip", "error"] = "error",
    elsewhere: "Elsewhere | None" = None,
    progress: bool = False,
) -> FeatureSet:
    """The features of one part of `data`, to iterate over: relu of `layer`, of clips `hop` sampled frames apart.

    Args:
        elsewhere: Where other processes or machines compute them; None computes them here.

    Raises:
        InputError: `data` is no dataset, or the network has no such layer.
    """
    from edgeact._capture import check_network
    from edgeact._feature_layer import feature_extractor, feature_network, network_digest

    root = calibration_root(os.fspath(data), _MOTION_VIDEOS, progress=progress)
    dataset = open_dataset(root, split=split)
    hop = max(1, spec.frames // 2) if hop is None else hop
    check_network(model, spec)
    features = feature_network(model, spec, layer)
    network = network_digest(features)
    return FeatureSet(
        dataset,
        feature_extractor(features, spec),
        network,
        layer,
        spec,
        hop,
        on_corrupt,
        progress=progress,
        compute=None if elsewhere is None else elsewhere.workers(network, spec, hop),
    )


def fit(videos: FeatureSet, *, model_name: str, dims: int = 10, order: str = ORDER) -> Descriptor:
    """Fit a descriptor on `videos`, those of a training part.

    Args:
        videos: What `open_features` gave; those skipped are listed in it.
        model_name: Of the network.
        dims: Numbers of the descriptor.
        order: See `edgeact.descriptor.Reading`.

    Raises:
        InputError: There are no more videos than dimensions, or the features do not vary in so many.
        SvmError: The videos are of one class.
        MissingDependencyError: scikit-learn is not installed.
    """
    require_sklearn()
    import sklearn

    order = check_order(order)
    if dims < 1:
        raise InputError(f"dims is {dims}: a descriptor has at least 1")
    _check_count(len(videos.dataset.samples), dims)
    _check_classes(np.array([sample.label for sample in videos.dataset.samples]))  # before hours of work
    pca = fit_pca((video.average for video in videos), dims)
    reading, found, labels = Reading(order=order, scale=np.ones(dims)), [], []
    for video in videos:  # once more, from the cache
        found.append(reading.video(project(video.clips, pca.components, pca.mean)))
        labels.append(video.sample.label)
    descriptors, classes = np.stack(found).astype(np.float32), np.array(labels, np.int64)
    weights, bias = train_svm(descriptors, classes, len(videos.dataset.labels))
    return Descriptor(
        components=pca.components.astype(np.float32),
        mean=pca.mean.astype(np.float32),
        variances=pca.variances.astype(np.float32),
        explained=pca.explained.astype(np.float32),
        layer=videos.layer,
        order=order,
        model=model_name,
        network=videos.network,
        spec=videos.spec,
        hop=videos.hop,
        videos=pca.rows,
        labels=videos.dataset.labels,
        examples=Examples(descriptors=descriptors, labels=classes, svm_weights=weights, svm_bias=bias),
        versions={"scikit-learn": sklearn.__version__, "numpy": np.__version__},
    )


def _check_count(videos: int, dims: int) -> None:
    """N averages around their mean span N - 1 dimensions."""
    if videos <= dims:
        raise InputError(
            f"{videos} usable videos in the training part, and {dims} dimensions asked for: {videos} videos span "
            f"{videos - 1}; give --dims {max(videos - 1, 1)} or less, or more videos"
        )


def fit_pca(rows: Iterable[NDArray[np.float64]], dims: int, *, spanned: bool = False) -> Pca:
    """PCA of rows `[D]`, read once, a few hundred in memory (Ross 2008, as scikit-learn's IncrementalPCA).

    Exact up to a few hundred rows; beyond, components of little variance are approximated.

    Args:
        rows: At least two.
        dims: Components to find.
        spanned: Of rows that vary in fewer dimensions, give those there are.

    Raises:
        InputError: There are no more rows than `dims`, or they do not vary in so many dimensions.
    """
    from sklearn.decomposition import IncrementalPCA

    model = None
    for batch in _batches(rows, max(_BATCH_VIDEOS, 2 * (dims + _SPARE))):
        if model is None:
            if spanned:
                dims = min(dims, max(len(batch) - 1, 1), batch.shape[1])
            if dims > batch.shape[1]:
                raise InputError(f"{dims} dimensions asked for, and the layer has {batch.shape[1]} features")
            _check_count(len(batch), dims)
            model = IncrementalPCA(n_components=min(dims + _SPARE, *batch.shape))
        with np.errstate(divide="ignore", invalid="ignore"):  # shares of no variance: refused below
            model.partial_fit(batch)
    if model is None:
        _check_count(0, dims)
    assert model is not None
    variances = model.explained_variance_
    usable = int((variances[:dims] > _FLAT * variances[0]).sum()) if variances[0] > 0 else 0
    if usable < dims and not (spanned and usable):
        hint = f"give --dims {usable} or less" if usable else "every video gives the same ones; is the network trained?"
        raise InputError(f"the features vary in {usable} dimensions, and {dims} were asked for: {hint}")
    dims = usable
    components = model.components_[:dims]
    largest = components[np.arange(dims), np.abs(components).argmax(1)]
    return Pca(
        components=components * np.sign(largest)[:, None],
        mean=model.mean_,
        variances=variances[:dims],
        explained=model.explained_variance_ratio_[:dims],
        rows=int(model.n_samples_seen_),
    )


def _batches(rows: Iterable[NDArray[np.float64]], size: int) -> Iterator[NDArray[np.float64]]:
    pending: list[NDArray[np.float64]] = []
    for row in rows:
        pending.append(row)
        if len(pending) == size:
            yield np.stack(pending)
            pending.clear()
    if pending:
        yield np.stack(pending)


def _check_classes(labels_N: NDArray[Any]) -> NDArray[Any]:
    """The classes that there are, of which a classifier needs two."""
    present: NDArray[Any] = np.unique(labels_N)
    if len(present) < 2:
        raise SvmError(f"{len(labels_N)} videos of one class: a classifier needs two")
    return present


def train_svm(
    descriptors_Nd: NDArray[Any], labels_N: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights `[K, d]` and bias `[K]` of a linear SVM, one class against the rest, C = 1.

    Raises:
        SvmError: The videos are of one class.
    """
    from sklearn.svm import LinearSVC

    present = _check_classes(labels_N)
    model = LinearSVC(C=1.0, dual=False, random_state=0, max_iter=10_000).fit(descriptors_Nd, labels_N)
    rows, offsets = model.coef_, np.atleast_1d(model.intercept_)
    if len(present) == 2:  # one row, of the second against the first
        rows, offsets = np.concatenate([-rows, rows]), np.concatenate([-offsets, offsets])
    weights = np.zeros((classes, rows.shape[1]), np.float32)
    bias = np.full(classes, np.finfo(np.float32).min, np.float32)  # of a class without videos: never chosen
    weights[present], bias[present] = rows, offsets
    return weights, bias
