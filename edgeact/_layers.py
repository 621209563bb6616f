"""Where int8 loses, in words: at which rung, and from which layer on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeact._capture import quiet_torchao
from edgeact.clip import ClipSpec, normalize
from edgeact.numerics import Numerics
from edgeact.runtime import Runner

if TYPE_CHECKING:
    from torch.fx import GraphModule

__all__ = ["layers_in_words", "rungs_in_words", "worst_first"]

_CLIPS = 4
_DIVERGED_DB = 20.0
_CAUSES = {
    "folded": "folding BatchNorm",
    "quantized": "int8 itself, as simulated",
    "lowered": "the 2-D form, which rounds sums of taps",
    "artifact": "the runtime, which rounds its own way",
}


def rungs_in_words(numerics: Numerics) -> str:
    """Which step down the ladder adds most noise, and which changes answers."""
    first, second, *_ = sorted(numerics.rungs, key=lambda rung: rung.step_sqnr_db)
    before = [1.0, *(rung.agreement for rung in numerics.rungs)]
    falls = [(high - rung.agreement, rung.name) for high, rung in zip(before, numerics.rungs, strict=False)]
    fall, where = max(falls)
    answers = f"agreement falls most at {where}, by {100 * fall:.1f} points" if fall > 0 else "no answer changes"
    return (
        f"int8: most noise comes from {_CAUSES[first.name]}: {first.name} is {first.step_sqnr_db:.1f} dB from the rung "
        f"before, then {second.name} with {second.step_sqnr_db:.1f} dB; on the ladder's clips {answers}"
    )


def worst_first(
    clips: Sequence[NDArray[np.uint8]], reference_NK: NDArray[np.float32], logits_NK: NDArray[np.float32]
) -> list[NDArray[np.uint8]]:
    """`clips` by the noise in their `logits_NK` over the power of `reference_NK`, the noisiest first."""
    noise_N = np.square(logits_NK - reference_NK).sum(1) / np.square(reference_NK).sum(1).clip(min=1e-12)
    return [clips[i] for i in np.argsort(-noise_N, kind="stable")]


def layers_in_words(
    folded: "GraphModule", network: "GraphModule", runner: Runner, clips: Sequence[NDArray[np.uint8]], spec: ClipSpec
) -> Iterator[str]:
    """Where the noise of the int8 `network` comes from, and that of the artifact where its runtime shows its layers.

    Args:
        folded: The float network, B=1.
        network: Its int8 network.
        runner: The artifact's.
        clips: uint8 clips `[1, T, H, W, 3]`, of which the first few are run: see `worst_first`.
        spec: How they are normalised.
    """
    import torch

    few = clips[:_CLIPS]
    with quiet_torchao():
        from edgeact.quantize.layers import called, compare_layers, layer_outputs

        tensors = [torch.from_numpy(normalize(clip, spec)) for clip in few]
        reference, simulated = (layer_outputs(graph, tensors) for graph in (folded, network))
    compared = {"the float network": compare_layers(reference, simulated)}
    if (found := _artifact_outputs(runner, few, simulated)) is not None:
        compared["the simulation, in the artifact"] = compare_layers(simulated, found)
    for other, layers in compared.items():
        worst, lowest_db = min(layers, key=lambda pair: pair[1])
        diverged = next(((name, db) for name, db in layers if db < _DIVERGED_DB), None)
        where = f"below {_DIVERGED_DB:g} dB of {other}, on the noisiest clips"
        if diverged is None:
            yield f"int8: no layer is {where} ({called(folded, worst)} is lowest)"
        else:
            yield (
                f"int8: the first layer {where} is {called(folded, diverged[0])} ({diverged[1]:.1f} dB), the lowest is "
                f"{called(folded, worst)} ({lowest_db:.1f} dB)"
            )


def _artifact_outputs(
    runner: Runner, clips: Sequence[NDArray[np.uint8]], simulated: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]] | None:
    """What `layer_outputs` of quantize returns, of the artifact; None where the runtime does not tell its layers."""
    from edgeact.quantize.layers import sample

    names = sorted(simulated, key=lambda name: name.startswith("linear"))  # convolutions first, else in their order
    runs = [[sample(values) for values in runner.layers(clip)] for clip in clips]
    found = dict(zip(names, (np.concatenate(parts) for parts in zip(*runs, strict=True)), strict=False))
    same = [values.size for values in found.values()] == [simulated[name].size for name in names]
    return {name: found[name] for name in simulated} if same else None
