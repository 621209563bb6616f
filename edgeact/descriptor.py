"""A video in a few numbers: the PCA of a network's features, and what becomes of the outputs of a device.

    clip ─► network up to a layer ─► relu ─► one Linear: PCA ─► output [1, d]              a device, clip by clip
    outputs of a video's clips ─► × scale: PCA coordinates ─► average, to length 1         here, in numpy

PCA is affine and commutes with the average over clips; scaling to length 1 commutes with neither. So it comes last, in
the d numbers, and what a device gives needs no more than them: PCA is fitted on averages as they are, and the order of
averaging and scaling is recorded. (Tran 2015 scales the averages before PCA: no device that sends d numbers per clip
could follow, since the length of the average is lost.)

Shapes: N videos or clips, D features, d dimensions, K classes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgeact.clip import ClipSpec
from edgeact.errors import UnknownNameError

__all__ = [
    "Described",
    "Descriptor",
    "Examples",
    "Order",
    "Reading",
    "blocks",
    "check_order",
    "project",
    "unit",
]

Order = Literal["average-normalize", "normalize-average"]


def check_order(order: str) -> Order:
    """Refuse an order that is none.

    Raises:
        UnknownNameError: It is none.
    """
    if order not in get_args(Order):
        raise UnknownNameError("order", order, get_args(Order))
    return order  # type: ignore[return-value]


def unit(rows_Nd: NDArray[Any]) -> NDArray[np.float64]:
    """Each row scaled to length 1; a row of zeros stays."""
    rows = np.asarray(rows_Nd, np.float64)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, np.finfo(np.float64).tiny))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a network's outputs are read as descriptors.

    Attributes:
        order: What comes first, the average over clips or the scaling to length 1.
        scale: `[d]`, which outputs are multiplied by to be PCA coordinates: the components' standard deviations of a
            whitened output, else ones.
    """

    order: Order
    scale: NDArray[np.float64]

    def video(self, outputs_Nd: NDArray[Any]) -> NDArray[np.float64]:
        """The descriptor `[d]` of one video from the outputs of its N clips."""
        coordinates = np.asarray(outputs_Nd, np.float64) * self.scale
        if self.order == "average-normalize":
            return unit(coordinates.mean(0))
        averaged: NDArray[np.float64] = unit(coordinates).mean(0)
        return averaged

    def clips(self, outputs_Nd: NDArray[Any]) -> NDArray[np.float64]:
        """Descriptors `[N, d]` of clips that stand for themselves; of one clip, the order makes no difference."""
        return unit(np.asarray(outputs_Nd, np.float64) * self.scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Labelled descriptors of the training part, and a linear SVM trained on them: what classifies others.

    Attributes:
        descriptors: `[N, d]`.
        labels: Positions `[N]` in the labels.
        svm_weights: `[K, d]`.
        svm_bias: `[K]`.
    """

    descriptors: NDArray[np.float32]
    labels: NDArray[np.int64]
    svm_weights: NDArray[np.float32]
    svm_bias: NDArray[np.float32]

    def svm(self, descriptors_Nd: NDArray[Any]) -> NDArray[np.float64]:
        """Scores `[N, K]` of the linear SVM."""
        scores: NDArray[np.float64] = np.asarray(descriptors_Nd, np.float64) @ self.svm_weights.T + self.svm_bias
        return scores

    def nearest(self, descriptors_Nd: NDArray[Any]) -> NDArray[np.int64]:
        """The class `[N]` of the example with the highest cosine."""
        gallery = unit(self.descriptors).T
        found = [(unit(rows) @ gallery).argmax(1) for rows in blocks(np.asarray(descriptors_Nd))]
        return np.asarray(self.labels[np.concatenate(found)])


def blocks(rows_Nd: NDArray[Any]) -> list[NDArray[Any]]:
    """A thousand rows at a time: similarities of all at once would take N x N numbers."""
    return np.array_split(rows_Nd, max(1, -(-len(rows_Nd) // 1000)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Described:
    """What the outputs of a descriptor's network mean: how they are read, and what classifies them."""

    reading: Reading
    examples: Examples


@dataclass(frozen=True, kw_only=True, eq=False)
class Descriptor:
    """A fitted descriptor and the network it is of.

    Attributes:
        components: Directions `[d, D]`, orthonormal; the largest number of each is positive.
        mean: Of the averaged features, `[D]`.
        variances: Of the averaged features along each component, `[d]`, the largest first.
        explained: Their shares `[d]` of the whole variance.
        layer: The network's layer whose relu the features are.
        order: See `Reading`.
        model: Name of the network.
        network: sha256 of the network up to that layer, ops and weights.
        spec: How a video becomes clips.
        hop: Sampled frames from the start of one clip to that of the next.
        videos: How many it was fitted on.
        labels: Names of the classes.
        examples: Labelled descriptors of those videos.
        versions: Of the libraries that fitted it.
    """

    components: NDArray[np.float32]
    mean: NDArray[np.float32]
    variances: NDArray[np.float32]
    explained: NDArray[np.float32]
    layer: str
    order: Order
    model: str
    network: str
    spec: ClipSpec
    hop: int
    videos: int
    labels: tuple[str, ...]
    examples: Examples
    versions: Mapping[str, str]

    @property
    def dims(self) -> int:
        """Numbers d of a descriptor."""
        return len(self.components)

    @property
    def digest(self) -> str:
        """sha256 of what its numbers depend on: descriptors compare where it is the same."""
        digest = hashlib.sha256(json.dumps([self.network, self.order, self.hop, self.spec.to_dict()]).encode())
        for array in (self.components, self.mean):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def deviations(self) -> NDArray[np.float64]:
        """Standard deviations `[d]` along the components: the unit of a whitened output."""
        return np.sqrt(self.variances.astype(np.float64))

    def project(self, features_ND: NDArray[Any]) -> NDArray[np.float64]:
        """PCA coordinates `[N, d]` of features."""
        return project(features_ND, self.components, self.mean)

    def reading(self, *, whitened: bool) -> Reading:
        """How the outputs of its network are read."""
        return Reading(order=self.order, scale=self.deviations if whitened else np.ones(self.dims))

    def described(self, *, whitened: bool) -> Described:
        """What the outputs of its network mean."""
        return Described(reading=self.reading(whitened=whitened), examples=self.examples)


def project(features_ND: NDArray[Any], components_dD: NDArray[Any], mean_D: NDArray[Any]) -> NDArray[np.float64]:
    """PCA coordinates `[N, d]`."""
    coordinates: NDArray[np.float64] = (np.asarray(features_ND, np.float64) - mean_D) @ components_dD.T
    return coordinates
