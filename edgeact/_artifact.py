"""The artifact on this machine: what runs it, and what it takes beside PyTorch."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeact._capture import behind_uint8, lower_and_prove
from edgeact._records import Job
from edgeact.clip import normalize
from edgeact.environment import device_name
from edgeact.latency import Latency, measure_interleaved, summarize
from edgeact.parity import NotMeasured
from edgeact.runtime import Runner, compile_engine, emulation_of, load_runner, needs_engine
from edgeact.runtime._memory import peak_memory_mb

if TYPE_CHECKING:
    from torch.fx import GraphModule

__all__ = ["cost_of_floats", "runner_of", "time_beside_reference"]


def runner_of(job: Job, folder: Path, clip: NDArray[np.uint8]) -> Runner:
    """What executes the artifact here; what is compiled on the device is compiled for this machine."""
    runtime = job.target.proxy or job.target.runtime
    if needs_engine(runtime):
        compile_engine(runtime, folder, clip, job.threads)
    return load_runner(runtime, folder, job.spec, job.threads)


def time_beside_reference(job: Job, runner: Runner, folder: Path, clip: NDArray[np.uint8]) -> Latency | NotMeasured:
    """PyTorch eager on the normalised clip against the artifact on the uint8 clip: the artifact does more."""
    import torch

    if runner.missing:
        return NotMeasured(runner.missing)
    if job.target.proxy:
        return NotMeasured(f"the device alone tells: {job.target.proxy} is a proxy for {job.target.runtime}")
    if emulation := emulation_of(runner):
        return NotMeasured(f"emulated: the device alone tells, and here is {emulation}")

    clip_BCTHW = torch.from_numpy(normalize(clip, job.spec))
    with torch.inference_mode():
        samples = measure_interleaved(
            {"reference": lambda: job.model(clip_BCTHW), "artifact": lambda: runner(clip)}, rounds=job.rounds
        )
    return summarize(
        samples,
        threads=job.threads,
        runtime=f"{job.target.runtime} {runner.version}",
        device=device_name(runner.device),
        peak_memory_mb=peak_memory_mb(job.target.runtime, folder, job.spec, job.threads),
    )


def cost_of_floats(job: Job, whole: "GraphModule", runner: Runner, clip: NDArray[np.uint8]) -> str:
    """The artifact beside one with every layer in int8, in one interleaved run."""
    if runner.missing or job.target.proxy or emulation_of(runner):
        return f"int8: what the layers in float cost is not measured: {runner.missing or 'a device alone tells'}"
    with tempfile.TemporaryDirectory(prefix="edgeact-int8-") as folder:
        program = lower_and_prove(behind_uint8(whole, job.spec), job.form, clip)
        job.target.compile(program, Path(folder), job.asked)
        other = runner_of(job, Path(folder), clip)
        samples = measure_interleaved({"kept": lambda: runner(clip), "all": lambda: other(clip)}, rounds=job.rounds)
    kept_ms, all_ms = (float(np.median(samples[name])) for name in ("kept", "all"))
    return f"int8: {kept_ms:.2f} ms with these layers in float, {all_ms:.2f} ms with all in int8 (interleaved)"
