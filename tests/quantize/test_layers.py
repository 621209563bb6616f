"""Which layer int8 loses at: a layer that is hurt on purpose is the one that is named."""

import operator
from typing import Any

import numpy as np
import pytest
import torch
from int8_networks import calibrated
from torch import fx, nn

from edgeact._capture import fold, quiet_torchao
from edgeact._layers import layers_in_words, rungs_in_words, worst_first
from edgeact.clip import ClipSpec, normalize
from edgeact.numerics import ladder
from edgeact.quantize.scheme import Scheme

with quiet_torchao():
    from edgeact.quantize.layers import compare_layers, int8_layers, layer_outputs, rank_layers

SPEC = ClipSpec(frames=4, short_side=16, crop_height=16, crop_width=16)
NAMES = {"conv3d": "0", "conv3d_1": "2", "linear": "6"}


@pytest.fixture
def clips() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, *SPEC.clip_shape), dtype=np.uint8) for _ in range(3)]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    convolutions = nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1, groups=8), nn.ReLU()
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


def hurt(quantized: fx.GraphModule, layer: str) -> None:
    """Make the int8 weights of `layer` half as large again."""
    (node,) = (node for node in quantized.graph.nodes if node.name == layer)
    operator.attrgetter(node.args[1].args[1].target)(quantized).mul_(1.5)


class Runs:
    """A runtime that shows the layers of `graph`, or none."""

    def __init__(self, graph: fx.GraphModule | None) -> None:
        self.graph = graph

    def layers(self, clip: Any) -> list[Any]:
        """The small results of one clip are not sampled."""
        tensors = [torch.from_numpy(normalize(clip, SPEC))]
        return list(layer_outputs(self.graph, tensors).values()) if self.graph is not None else []


def compare(folded: fx.GraphModule, quantized: fx.GraphModule, clips: list[Any]) -> dict[str, float]:
    tensors = [torch.from_numpy(normalize(clip, SPEC)) for clip in clips]
    return dict(compare_layers(layer_outputs(folded, tensors), layer_outputs(quantized, tensors)))


@pytest.mark.parametrize("layer", NAMES)
def test_the_layer_that_is_hurt_is_found(network: nn.Module, clips: list[Any], layer: str) -> None:
    folded, tensors = fold(network, SPEC), [torch.from_numpy(normalize(clip, SPEC)) for clip in clips]
    sound, quantized = (calibrated(network, clips, SPEC, Scheme()) for _ in range(2))
    hurt(quantized, layer)
    assert int8_layers(quantized) == list(NAMES)
    assert min(compare(folded, sound, clips).values()) > 25
    compared = compare(folded, quantized, clips)
    assert list(compared) == list(NAMES)
    assert next(name for name, db in compared.items() if db < 20) == layer
    before, ranked = dict(rank_layers(folded, sound, tensors)), rank_layers(folded, quantized, tensors)
    assert ranked[0][0] == layer
    assert all(db == before[name] for name, db in ranked if name != layer)


@pytest.mark.parametrize("layer", NAMES)
def test_it_is_said_in_words(network: nn.Module, clips: list[Any], layer: str) -> None:
    folded = fold(network, SPEC)
    sound, quantized = (calibrated(network, clips, SPEC, Scheme()) for _ in range(2))
    hurt(quantized, layer)
    (words,) = layers_in_words(folded, sound, Runs(None), clips, SPEC)
    assert words.startswith("int8: no layer is below 20 dB of the float network, on the noisiest clips ("), words
    (words,) = layers_in_words(folded, quantized, Runs(None), clips, SPEC)
    first = "int8: the first layer below 20 dB of"
    assert words.startswith(f"{first} the float network, on the noisiest clips is {NAMES[layer]} ("), words
    assert list(layers_in_words(folded, sound, Runs(sound), clips, SPEC))[1] == (
        "int8: no layer is below 20 dB of the simulation, in the artifact, on the noisiest clips (0 is lowest)"
    )
    *_, words = layers_in_words(folded, sound, Runs(quantized), clips, SPEC)
    where = "the simulation, in the artifact, on the noisiest clips"
    assert words.startswith(f"{first} {where} is {NAMES[layer]} (")


def test_the_clips_that_lose_most_come_first() -> None:
    clips = [np.full(1, i, np.uint8) for i in range(3)]
    reference = np.array([[1, 2], [10, 20], [0, 0]], np.float32)
    noise = np.array([[0.2, 0], [0.4, 0], [0.1, 0]], np.float32)
    assert [int(clip[0]) for clip in worst_first(clips, reference, reference + noise)] == [2, 0, 1]


def test_the_rung_that_loses_is_named() -> None:
    fp32 = np.eye(4, 3, dtype=np.float32) + 1
    int8 = fp32 + 0.01 * np.array([1, -1, 1], np.float32)
    wrong = int8[:, ::-1]
    steps = [("fp32", fp32), ("folded", fp32 + 1e-6), ("quantized", int8)]
    assert rungs_in_words(ladder([*steps, ("artifact", int8 + 1e-4)])) == (
        "int8: most noise comes from int8 itself, as simulated: quantized is 42.4 dB from the rung before, then "
        "artifact with 82.5 dB; on the ladder's clips no answer changes"
    )
    words = rungs_in_words(ladder([*steps, ("artifact", wrong)]))
    assert words.startswith("int8: most noise comes from the runtime, which rounds its own way: artifact is "), words
    assert words.endswith("on the ladder's clips agreement falls most at artifact, by 50.0 points"), words
