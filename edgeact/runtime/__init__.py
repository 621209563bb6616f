"""Torch-free runners: load a bundle, map clips to logits."""

import importlib
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeact.bundle import Bundle, open_bundle
from edgeact.clip import ClipSpec
from edgeact.errors import BundleError, InputError
from edgeact.parity import Placement

__all__ = ["CheckedRunner", "Runner", "is_installed", "load", "load_runner", "modules_of"]


class Runner(Protocol):
    """What every file of this folder provides as `Runner(folder, shape, threads)`."""

    device: str
    threads: int
    version: str
    proxy_for: str | None  # the runtime that this one stands in for on this machine
    missing: str | None  # why the artifact cannot be run on this machine; a call then fails

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 `clip_BTHWC` with B=1 to float32 `logits_BK`."""

    def layers(self, clip: NDArray[np.uint8]) -> Iterable[NDArray[np.float32]]:
        """Results of the convolutions, then of the linear layers; none where the runtime does not give them."""

    def placement(self) -> Placement:
        """Where each compute op runs."""


class CheckedRunner:
    """A runner behind its bundle's contract: a clip of another shape, type or layout is refused, never converted."""

    def __init__(self, bundle: Bundle, runner: Runner) -> None:
        self.bundle, self.runner = bundle, runner
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


def modules_of(runtime: str) -> tuple[str, ...]:
    """The modules of which the runner `runtime` needs one.

    Raises:
        BundleError: There is no such runner.
    """
    known = sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))
    if runtime not in known:  # a manifest is untrusted: it never names a module to import
        raise BundleError(f"the bundle wants the runtime {runtime!r}; this edgeact has: {', '.join(known)}")
    modules: tuple[str, ...] = importlib.import_module(f"edgeact.runtime.{runtime}").MODULES
    return modules


def is_installed(runtime: str) -> bool:
    """Whether what the runner needs can be imported here."""
    return any(importlib.util.find_spec(module) is not None for module in modules_of(runtime))


def load_runner(runtime: str, folder: Path, spec: ClipSpec, threads: int = 0) -> Runner:
    """The runner named `runtime` over the artifact in `folder`.

    Raises:
        BundleError: There is no such runner.
        MissingDependencyError: The runtime is not installed.
    """
    modules_of(runtime)  # refuses what is none
    runner: Runner = importlib.import_module(f"edgeact.runtime.{runtime}").Runner(
        folder, (1, *spec.clip_shape), threads
    )
    return runner


def load(bundle: Bundle | str | os.PathLike[str], *, threads: int = 0) -> CheckedRunner:
    """Load a bundle for running; no torch is needed.

    Args:
        bundle: A bundle or its folder; its hashes are verified.
        threads: CPU threads; 0 takes every core.

    Raises:
        BundleError: The bundle is damaged or of another version.
        MissingDependencyError: Its runtime is not installed.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    return CheckedRunner(opened, load_runner(opened.runtime, opened.path, opened.spec, threads))
