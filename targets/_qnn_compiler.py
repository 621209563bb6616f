"""Compiles an ONNX to a context binary of the Hexagon HTP and checks what came out, in a process of its own.

    python -m edgeact.targets._qnn_compiler model.onnx FOLDER LEAST_DB soc_model=57 htp_arch=75 …

FOLDER gets `model.context.bin`, its wrapper `model.context.onnx` and `checked.json`. The binary is loaded again and
must compute what the graph does: QNN's fastest way to compile gives wrong numbers for some networks, and says nothing.
"""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact.errors import EdgeactError, ToolchainError
from edgeact.numerics import compare_outputs
from edgeact.runtime._onnxruntime import import_onnxruntime, session_options
from edgeact.runtime.qnn import open_session

__all__ = ["compile_context", "main", "reason"]

_THREADS = os.cpu_count() or 1
_BOUNDARY = {"EPContext", "QuantizeLinear", "DequantizeLinear"}


def compile_context(model: Path, folder: Path, least_db: float, provider: dict[str, str]) -> dict[str, Any]:
    """Compile `model`; what is told of it.

    Args:
        model: uint8 `clip_BTHWC` -> float32 `logits_BK`.
        folder: An existing, empty folder.
        least_db: Least SQNR of the binary against the graph, computed as written on a CPU.
        provider: Options of QNN's provider.

    Raises:
        ToolchainError: QNN cannot, leaves an op to the CPU, or its binary computes something else.
    """
    entries = {"ep.context_enable": "1", "ep.context_embed_mode": "0"}
    written = folder / "written.onnx"
    start = time.perf_counter()
    compiled = open_session(model, provider, entries | {"ep.context_file_path": str(written)}, threads=_THREADS, log=0)
    seconds = time.perf_counter() - start
    wrapper = _name_files(written, folder)
    clip = _clip(tuple(compiled.get_inputs()[0].shape))
    sessions = (compiled, _on_cpu(model), open_session(wrapper, {}, threads=_THREADS))
    in_memory, as_written, loaded = (_run(session, clip) for session in sessions)
    if not np.array_equal(in_memory, loaded):
        raise ToolchainError("the context binary computes other logits than the graph that it was written from")
    sqnr_db, _, _ = compare_outputs(as_written, loaded)
    if not sqnr_db >= least_db:
        raise ToolchainError(
            f"the context binary is {sqnr_db:.1f} dB from the graph as ONNX Runtime computes it on a CPU, and at least "
            f"{least_db:g} dB are usual: QNN compiled something else"
        )
    return {"seconds": round(seconds, 2), "sqnr_db": round(min(sqnr_db, 200.0), 1)}


def _name_files(written: Path, folder: Path) -> Path:
    """The wrapper and its binary by the names of a bundle, once the wrapper holds nothing but the binary."""
    import onnx

    model = onnx.load(written, load_external_data=False)
    outside = [node for node in model.graph.node if node.op_type not in _BOUNDARY]
    contexts = [node for node in model.graph.node if node.op_type == "EPContext"]
    if outside or len(contexts) != 1:
        left = outside[0].name if outside else f"{len(contexts)} context binaries"
        raise ToolchainError(f"QNN does not compile the network as one: {left}")
    (binary,) = (each for each in contexts[0].attribute if each.name == "ep_cache_context")
    (folder / binary.s.decode()).rename(folder / "model.context.bin")
    binary.s = b"model.context.bin"
    written.unlink()
    onnx.save(model, folder / "model.context.onnx")
    return folder / "model.context.onnx"


def _clip(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Patches of all colours that move from frame to frame."""
    _, time_, height, width, _ = shape
    coarse = np.random.default_rng(0).integers(0, 256, (1, time_, -(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return coarse.repeat(8, 2).repeat(8, 3)[:, :, :height, :width]


def _on_cpu(model: Path) -> Any:
    ort = import_onnxruntime()
    options = session_options(_THREADS)
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # as written, in float between Q and DQ
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: Any, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = session.run(["logits"], {session.get_inputs()[0].name: clip})[0]
    if not np.isfinite(logits).all() or math.isclose(float(np.abs(logits).max()), 0.0):
        raise ToolchainError("the logits of a clip are not finite, or all zero")
    return logits


def reason(said: str) -> str:
    """Why QNN did not compile a network, in what it logged: the first op that it refuses, and its reason."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    refused = [line for line in lines if "Unsupported nodes in QNN EP:" in line]
    if refused and "fallback to CPU EP has been explicitly disabled" in lines[-1]:
        named = refused[-1].partition("{ name: ")[2].partition(" }")[0]
        name, _, kind = named.partition(", type: ")
        block = said.rpartition(f"Node name: {name} Node index:")[2].partition("\n\n")[0]
        why = block.partition("REASON : ")[2].partition("\n")[0].strip()
        layer = name.rpartition("/")[0]
        where = f" of layer {layer!r}" if layer else ""
        return f"HTP does not take {kind} {name!r}{where}" + (f": {why}" if why else "")
    return lines[-1] if lines else "it says nothing"


def main(model: str, folder: str, least_db: str, *provider: str) -> int:
    """The process: 0 where a binary was written and agrees."""
    options = dict(each.split("=", 1) for each in provider)
    try:
        told = compile_context(Path(model), Path(folder), float(least_db), options)
    except EdgeactError as exc:
        print(exc, flush=True)
        return 1
    (Path(folder) / "checked.json").write_text(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
