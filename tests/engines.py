"""Engines that need no compiler: the program of a `gpu` bundle run by PyTorch as it is."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from edgeact._capture import run_program
from edgeact._program import read_program
from edgeact.runtime import _candidates, aotinductor


def uncompiled(patch: pytest.MonkeyPatch, error: float = 0.0) -> None:
    """Replace the candidates of `gpu` in this process; `error` is added to every logit."""

    def candidates(bundle: Path, shape: Any, device: str, threads: int) -> dict[str, _candidates.Candidate]:
        def load(out: Path) -> Any:
            call = run_program(read_program(bundle, shape))
            return lambda clip: call(clip) + error

        return {"aotinductor": _candidates.Candidate(lambda out: (out / "made").touch(), load)}

    patch.setattr(aotinductor, "candidates", candidates)
    patch.setattr(_candidates, "candidates", candidates)
    for module in ("_artifact", "measure"):  # it is read in a fresh process, which knows nothing of this one
        patch.setattr(importlib.import_module(f"edgeact.{module}"), "peak_memory_mb", lambda *of: None)
