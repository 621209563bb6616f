"""Torch-free runners: load a bundle, map clips to logits.

A runtime that compiles on the device where it runs also has `machine() -> facts`, every fact that its engine depends
on, and `build(folder, out, clip, threads) -> facts`, which writes the engine of the artifact in `folder` into `out`;
its runner loads what `edgeact.engine.open_engine` gives it. The artifact's files hold every choice of the build.

A runner that emulates the device's hardware has `emulation`, what computes here in words, and its module `sample()` and
`emulation()`, the same before anything is loaded. A module whose runtime can be installed where it cannot run has
`cannot_run()`, the reason or None.
"""

import importlib
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeact.bundle import Bundle, open_bundle
from edgeact.clip import ClipSpec
from edgeact.engine import Engine, build_engine
from edgeact.errors import BundleError, InputError
from edgeact.parity import NotMeasured
from edgeact.placement import Placement

__all__ = [
    "CheckedRunner",
    "Runner",
    "cannot_run_here",
    "compile_engine",
    "emulation_here",
    "emulation_of",
    "is_installed",
    "load",
    "load_runner",
    "modules_of",
    "needs_engine",
    "runtime_here",
    "sample_of",
]


class Runner(Protocol):
    """What every file of this folder provides as `Runner(folder, shape, threads)`."""

    device: str
    threads: int
    version: str
    missing: str | None  # why the artifact cannot be run on this machine; a call then fails

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 `clip_BTHWC` with B=1 to float32 `logits_BK`."""

    def layers(self, clip: NDArray[np.uint8]) -> Iterable[NDArray[np.float32]]:
        """Results of the convolutions, then of the linear layers; none where the runtime does not give them."""

    def placement(self) -> Placement | NotMeasured:
        """Where each compute op runs."""


class CheckedRunner:
    """A runner behind its bundle's contract: a clip of another shape, type or layout is refused, never converted.

    `runtime` is the runner's name; `proxy_for` that of the bundle's own runtime where the runner stands in for it.
    """

    def __init__(self, bundle: Bundle, runner: Runner, runtime: str) -> None:
        self.bundle, self.runner, self.runtime = bundle, runner, runtime
        self.proxy_for = bundle.runtime if runtime != bundle.runtime else None
        self._shape = (1, *bundle.spec.clip_shape)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.bundle.labels

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 RGB clip `[1, T, H, W, 3]` to float32 logits `[1, K]`.

        Raises:
            InputError: The clip has another shape or type.
        """
        if clip.shape != self._shape or clip.dtype != np.uint8:
            raise InputError(
                f"this bundle takes a uint8 clip of shape {self._shape} (B, T, H, W, RGB), found {clip.dtype} of shape "
                f"{clip.shape}; edgeact.video.read_clip(path, bundle.spec) makes one"
            )
        return self.runner(clip if clip.flags.c_contiguous else np.ascontiguousarray(clip))


def emulation_of(runner: Runner) -> str | None:
    """What computes here as the device's hardware would, so that its time says nothing; None where that is at hand."""
    return getattr(runner, "emulation", None)


def emulation_here(runtime: str) -> str | None:
    """What would compute on this machine as the device's hardware does; None where that is at hand."""
    emulation: str | None = getattr(_module(runtime), "emulation", lambda: None)()
    return emulation


def cannot_run_here(runtime: str) -> str | None:
    """Why this machine cannot run it, whatever is installed; None where it can."""
    reason: str | None = getattr(_module(runtime), "cannot_run", lambda: None)()
    return reason


def sample_of(runtime: str) -> int | None:
    """Most clips to judge an export by, where one takes seconds on this machine; None where all are taken."""
    sample: int | None = getattr(_module(runtime), "sample", lambda: None)()
    return sample


def modules_of(runtime: str) -> tuple[str, ...]:
    """The modules of which the runner `runtime` needs one.

    Raises:
        BundleError: There is no such runner.
    """
    modules: tuple[str, ...] = _module(runtime).MODULES
    return modules


def is_installed(runtime: str) -> bool:
    """Whether what the runner needs can be imported here."""
    return any(_is_found(module) for module in modules_of(runtime))


def _is_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # what it is part of is absent
        return False


def needs_engine(runtime: str) -> bool:
    """Whether the artifact is compiled on the device where it runs.

    Raises:
        BundleError: There is no such runner.
    """
    return hasattr(_module(runtime), "build")


def compile_engine(
    runtime: str,
    folder: Path,
    clip: NDArray[np.uint8],
    threads: int = 0,
    *,
    workspace_mb: int | None = None,
    force: bool = False,
) -> Engine:
    """The engine of the artifact in `folder` for this machine, built where the cache has none of that workspace.

    Args:
        runtime: A runner that needs one.
        folder: The bundle's folder, already verified.
        clip: A real clip `[1, T, H, W, 3]`, to measure on where there is a choice.
        threads: CPU threads; 0 takes every core.
        workspace_mb: Of `tensorrt`: most memory that a kernel may use while it runs.
        force: Build even where there is one.

    Raises:
        EngineError: The cache could be written by other users.
        MissingDependencyError: The runtime is not installed.
        ToolchainError: The runtime cannot compile it.
    """
    module = _module(runtime)
    if workspace_mb is not None and runtime != "tensorrt":
        raise InputError(f"a limit of the workspace is of tensorrt, and {runtime} has none: leave it out")

    limits = {} if workspace_mb is None else {"workspace_mb": workspace_mb}

    def build(out: Path) -> Any:
        return module.build(folder, out, clip, threads or os.cpu_count() or 1, **limits)

    return build_engine(runtime, folder, module.machine(), build, settings=limits, force=force)


def load_runner(runtime: str, folder: Path, spec: ClipSpec, threads: int = 0) -> Runner:
    """The runner named `runtime` over the artifact in `folder`.

    Raises:
        BundleError: There is no such runner.
        EngineError: It runs from an engine, which was not compiled on this machine.
        MissingDependencyError: The runtime is not installed.
    """
    runner: Runner = _module(runtime).Runner(folder, (1, *spec.clip_shape), threads)
    return runner


def _module(runtime: str) -> Any:
    known = sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))
    if runtime not in known:  # a manifest is untrusted: it never names a module to import
        raise BundleError(f"the bundle wants the runtime {runtime!r}; this edgeact has: {', '.join(known)}")
    return importlib.import_module(f"edgeact.runtime.{runtime}")


def runtime_here(bundle: Bundle) -> str:
    """The bundle's runtime, or what stands in for it where that is not installed.

    Raises:
        BundleError: There is no such runner.
    """
    proxy = bundle.manifest.get("proxy")
    return bundle.runtime if proxy is None or is_installed(bundle.runtime) else str(proxy)


def load(bundle: Bundle | str | os.PathLike[str], *, threads: int = 0) -> CheckedRunner:
    """Load a bundle for running; no torch is needed.

    Args:
        bundle: A bundle or its folder; its hashes are verified.
        threads: CPU threads; 0 takes every core.

    Raises:
        BundleError: The bundle is damaged or of another version.
        EngineError: It is compiled on the device, and was not on this one.
        MissingDependencyError: Its runtime is not installed.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    runtime = runtime_here(opened)
    return CheckedRunner(opened, load_runner(runtime, opened.path, opened.spec, threads), runtime)
