"""A bundle's engine on the machine where it runs: built, proved on the golden clips, and kept only if it holds."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeact.bundle import Bundle, open_bundle
from edgeact.engine import remove_engine
from edgeact.environment import busy_note, device_name
from edgeact.errors import InputError
from edgeact.latency import Latency, measure_interleaved, summarize
from edgeact.numerics import Numerics, ladder
from edgeact.parity import Gates, NotMeasured, judge
from edgeact.placement import Placement
from edgeact.runtime import compile_engine, load, needs_engine
from edgeact.validate import stored_gates

__all__ = ["Compiled", "compile_bundle"]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """An engine and what it was judged by; where `held` is false it was removed again.

    Attributes:
        bundle: The bundle's folder.
        engine: The engine's folder.
        held: Whether it holds the bundle's gates of SQNR, on the golden clips, and of ops that fall back.
        failures: Why not, in words.
        numerics: The engine's logits against the reference.
        latency: Milliseconds per clip.
        placement: Where each layer runs, and in which precision.
        stamp: What it was compiled for, from and with.
        notes: Remarks.
    """

    bundle: str
    engine: str
    held: bool
    failures: tuple[str, ...]
    numerics: Numerics
    latency: Latency
    placement: Placement | NotMeasured
    stamp: Mapping[str, Any]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return dataclasses.asdict(self)


def compile_bundle(
    bundle: Bundle | str | os.PathLike[str],
    *,
    threads: int = 0,
    rounds: int = 30,
    gates: Gates | None = None,
    workspace_mb: int | None = None,
    force: bool = False,
) -> Compiled:
    """Compile a bundle for this machine, and judge its logits on the golden clips.

    Args:
        bundle: A bundle or its folder; its hashes are verified.
        threads: CPU threads; 0 takes every core.
        rounds: Timed runs.
        gates: Those of SQNR and of fallbacks are to hold; those stored in the bundle by default.
        workspace_mb: Of `tensorrt`: most memory that a kernel may use while it runs; all of it by default.
        force: Compile even where the cache has an engine for this machine and that workspace; else that one is judged
            again.

    Raises:
        BundleError: The bundle is damaged, hostile or of another version.
        EngineError: The cache could be written by other users.
        InputError: The bundle's runtime executes its artifact as it is.
        MissingDependencyError: The runtime is not installed.
        ToolchainError: The runtime cannot compile it.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if rounds < 1:
        raise InputError(f"rounds is {rounds}: latency needs at least 1")
    if not needs_engine(opened.runtime):
        raise InputError(
            f"{opened.path} needs no compiling: {opened.runtime} runs its artifact as it is; "
            f"`edgeact validate {opened.path}` judges it here"
        )
    gates, golden = gates or stored_gates(opened), opened.golden()
    clip = np.ascontiguousarray(golden[0].frames[None])
    engine = compile_engine(opened.runtime, opened.path, clip, threads, workspace_mb=workspace_mb, force=force)
    try:
        runner = load(opened, threads=threads)
        outputs = np.concatenate([runner(clip.frames[None]) for clip in golden])
        numerics = ladder([("golden", np.stack([clip.logits for clip in golden])), ("artifact", outputs)])
        unasked, placement = NotMeasured("`edgeact validate` judges it"), runner.runner.placement()
        failures = judge(dataclasses.replace(gates, require_all=False), numerics, unasked, unasked, placement)
    except BaseException:  # Ctrl-C too: what is not proved must not be there for `edgeact.load`
        remove_engine(engine)
        raise
    if failures:
        remove_engine(engine)
    samples = measure_interleaved({"artifact": lambda: runner.runner(clip)}, rounds=rounds)
    latency = summarize(
        samples,
        threads=runner.runner.threads,
        runtime=f"{runner.runtime} {runner.runner.version}",
        device=device_name(runner.runner.device),
        reference_missing="PyTorch is not used here",
    )
    return Compiled(
        bundle=str(opened.path),
        engine=str(engine.folder),
        held=not failures,
        failures=failures,
        numerics=numerics,
        latency=latency,
        placement=placement,
        stamp=engine.stamp,
        notes=busy_note(),
    )
