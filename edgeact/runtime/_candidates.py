"""What may execute a `gpu` bundle on one machine, and the choice between them by measurement.

Each candidate compiles into a folder, and loads from it a call from the uint8 clip to the logits:

    aotinductor                one native library for the whole network
    aotinductor+graph          the same library, its launches recorded once as a CUDA graph
    onnxruntime-PROVIDER       the bundle's `model.onnx` through ONNX Runtime
    tensorrt-rtx               the same through TensorRT for RTX, on cards of that name
"""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact._program import is_float16, read_program
from edgeact._toolchain import first_line, toolchain
from edgeact.errors import BundleError, EdgeactError, ToolchainError
from edgeact.latency import measure_interleaved
from edgeact.numerics import compare_outputs
from edgeact.runtime._onnxruntime import import_onnxruntime, session_options

__all__ = ["LIBRARY", "Call", "candidates", "choose", "load_candidate"]

Call = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Shape = tuple[int, ...]

LIBRARY = "engine.pt2"  # AOTInductor's package
_ONNX = "model.onnx"
_PROVIDERS = {
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-cpu": "CPUExecutionProvider",
}
_ROUNDS = 20


@dataclass(frozen=True)
class Candidate:
    """One way to execute the bundle: `compile` fills a folder, that `load` makes a call from."""

    compile: Callable[[Path], None]
    load: Callable[[Path], Call]


def candidates(bundle: Path, shape: Shape, device: str, threads: int) -> dict[str, Candidate]:
    """What this machine offers, by name."""

    def library(out: Path) -> None:
        _compile_library(bundle, shape, device, out)

    offered = {"aotinductor": Candidate(library, lambda out: _load_library(out, shape, device))}
    if device == "cuda":
        offered["aotinductor+graph"] = Candidate(library, lambda out: _load_library(out, shape, device, graph=True))
    if (bundle / _ONNX).is_file() and importlib.util.find_spec("onnxruntime"):
        onnxruntime = import_onnxruntime()
        for name, provider in _PROVIDERS.items():
            if provider in onnxruntime.get_available_providers() and (name == "onnxruntime-cpu") == (device == "cpu"):
                offered[name] = _onnx_candidate(bundle, provider, threads)
    if (bundle / _ONNX).is_file() and device == "cuda" and importlib.util.find_spec("tensorrt_rtx_bindings"):
        offered["tensorrt-rtx"] = _rtx_candidate(bundle, shape)
    return offered


def _rtx_candidate(bundle: Path, shape: Shape) -> Candidate:
    import tensorrt_rtx_bindings as rtx

    from edgeact.runtime.tensorrt import Network, build_plan

    def compile_(out: Path) -> None:
        precision = "fp16" if is_float16(bundle) else "fp32"
        (out / "model.plan").write_bytes(build_plan(rtx, bundle / _ONNX, precision, "gpu"))

    def load(out: Path) -> Call:
        return Network(rtx, out / "model.plan", shape)

    return Candidate(compile_, load)


def choose(
    offered: Mapping[str, Candidate],
    out: Path,
    clip: NDArray[np.uint8],
    expected: NDArray[np.float32],
    min_sqnr_db: float,
) -> dict[str, Any]:
    """Compile every candidate into `out/<name>`, and keep the fastest of those that give the expected logits.

    Returns:
        The name that was `chosen`, and the milliseconds and SQNR of each, or why it failed.

    Raises:
        ToolchainError: None of them compiles and gives these logits.
    """
    told: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    for name, candidate in offered.items():
        folder = _folder(out, name)
        try:
            if not folder.exists():
                folder.mkdir()
                candidate.compile(folder)
            call = candidate.load(folder)
            with _errors("run"):
                logits = call(clip)
            sqnr_db, _, _ = compare_outputs(expected, logits)
        except EdgeactError as exc:
            told[name] = {"failed": str(exc)}
            continue
        told[name] = {"sqnr_db": sqnr_db}
        if sqnr_db < min_sqnr_db:
            told[name] |= {"failed": f"{sqnr_db:.1f} dB is below {min_sqnr_db:g} dB"}
            continue
        calls[name] = call
    if not calls:
        raise ToolchainError("; ".join(f"{name}: {of['failed']}" for name, of in told.items()))
    timed = {name: (lambda call=call: call(clip)) for name, call in calls.items()}
    several = len(calls) > 1  # else there is nothing to choose, and fp16 takes seconds on a CPU
    with _errors("run"):
        measured = measure_interleaved(timed, rounds=_ROUNDS if several else 1, warmup=several)
    for name, samples in measured.items():
        told[name]["median_ms"] = float(np.median(samples))
    chosen = min(calls, key=lambda name: float(told[name]["median_ms"]))
    for name in offered:
        if _folder(out, name) != _folder(out, chosen):
            shutil.rmtree(_folder(out, name), ignore_errors=True)
    return {"chosen": chosen, "candidates": told}


def load_candidate(name: str, bundle: Path, engine: Path, shape: Shape, device: str, threads: int) -> Call:
    """The call of the candidate that was chosen.

    Raises:
        ToolchainError: This machine does not offer it any more, or it does not load.
    """
    offered = candidates(bundle, shape, device, threads)
    if name not in offered:
        raise ToolchainError(f"the engine is one of {name}, which is not installed: run `edgeact compile {bundle}`")
    return offered[name].load(_folder(engine, name))


def _folder(out: Path, name: str) -> Path:
    return out / name.partition("+")[0]


def _compile_library(bundle: Path, shape: Shape, device: str, out: Path) -> None:
    import torch

    program = read_program(bundle, shape, device)
    # threads are chosen when it runs, not when it is compiled
    settings: dict[str, Any] = {"cpp.dynamic_threads": True}
    with _errors("compile"), _private_cache(out), torch.no_grad():
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(out / LIBRARY), inductor_configs=settings
        )
    assert Path(package) == out / LIBRARY


@contextmanager
def _private_cache(out: Path) -> Iterator[None]:
    """Inductor's caches in a folder of our own: its default, in /tmp, is one that any user could make first."""
    from torch._inductor.utils import fresh_cache

    with tempfile.TemporaryDirectory(prefix=".inductor-", dir=out) as folder, fresh_cache(dir=folder, delete=False):
        yield


def _load_library(out: Path, shape: Shape, device: str, *, graph: bool = False) -> Call:
    import torch

    with _errors("load"):
        # `aoti_load_package` also compiles and loads a probe of the CPU, in a folder of /tmp that any user could make
        # first; the stamp holds these facts. The loader itself unpacks into a folder that is private.
        loader: Any = torch._C._aoti.AOTIModelPackageLoader(str(out / LIBRARY), "model", True, 1, -1)

        def model(clip: torch.Tensor) -> torch.Tensor:
            logits_BK: torch.Tensor = loader.boxed_run([clip])[0]
            return logits_BK

        return _on_cuda(model, shape, graph=graph) if device == "cuda" else _on_cpu(model)


def _on_cpu(model: Any) -> Call:
    import torch

    def call(clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(torch.from_numpy(clip)).numpy()
        return logits

    return call


def _on_cuda(model: Any, shape: Shape, *, graph: bool) -> Call:
    """The clip goes through page-locked memory; a recorded graph needs one launch for the whole network."""
    import torch

    host = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    there = torch.zeros(shape, dtype=torch.uint8, device="cuda")
    recorded = torch.cuda.CUDAGraph() if graph else None
    if recorded is not None:
        for _ in range(3):  # what is set up at first use must not be recorded
            model(there)
        torch.cuda.synchronize()
        with torch.cuda.graph(recorded):
            logits_BK = model(there)

    def call(clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            host.copy_(torch.from_numpy(clip))
            there.copy_(host, non_blocking=True)
            if recorded is None:
                result = model(there)
            else:
                recorded.replay()
                result = logits_BK
            logits: NDArray[np.float32] = result.cpu().numpy()
        return logits

    return call


def _onnx_candidate(bundle: Path, provider: str, threads: int) -> Candidate:
    def load(out: Path) -> Call:
        onnxruntime = import_onnxruntime()
        if b"EPContext" in (bundle / _ONNX).read_bytes():  # the op that carries a compiled engine: a stranger's code
            raise BundleError(f"{bundle / _ONNX} holds an engine that was compiled elsewhere: refused")
        settings = session_options(threads)
        if provider != "CPUExecutionProvider":  # else what it lacks runs on the CPU, without a word
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options = {
            "TensorrtExecutionProvider": {
                "trt_fp16_enable": str(int(is_float16(bundle))),
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(out),
            },
            "CUDAExecutionProvider": {"use_tf32": "0"},
        }.get(provider, {})
        with _errors("load"):
            session = onnxruntime.InferenceSession(
                str(bundle / _ONNX), settings, providers=[provider], provider_options=[options]
            )
        if session.get_providers()[0] != provider:  # without a word it would run on the CPU
            raise ToolchainError(f"ONNX Runtime cannot start its {provider}")
        name = session.get_inputs()[0].name

        def call(clip: NDArray[np.uint8]) -> NDArray[np.float32]:
            logits: NDArray[np.float32] = session.run(None, {name: clip})[0]
            return logits

        return call

    return Candidate(lambda out: None, load)


def _errors(what: str) -> AbstractContextManager[None]:
    return toolchain(f"cannot {what} this network", in_a_line=_in_a_line)


def _in_a_line(exc: BaseException) -> str:
    if "C++ compiler" not in str(exc):
        return first_line(exc)
    found = os.environ.get("CXX", "g++")
    return f"AOTInductor needs a C++ compiler, found none ({found}): install g++, or name one in CXX"
