"""Runs a `jetson` bundle on an NVIDIA GPU or DLA, by an engine that TensorRT built on that device.

numpy, tensorrt and cuda-python, no torch: the clip goes through page-locked memory, and one CUDA graph holds the copy
in, the network, and the copy out. Without Python 3.10 or these packages the bundle's own `build_engine.py` does the
same with trtexec.
"""

import ctypes
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeact._cache import cache_dir
from edgeact.engine import open_engine
from edgeact.errors import BundleError, MissingDependencyError, ToolchainError
from edgeact.parity import NotMeasured
from edgeact.placement import Placement, placement_from
from edgeact.runtime import _build_engine

__all__ = ["MODULES", "Network", "Runner", "build", "build_plan", "machine"]

MODULES = ("tensorrt",)  # one of them must be installed


class Runner:
    """Maps one uint8 clip `[1, T, H, W, 3]` to float32 logits `[1, K]`.

    Args:
        folder: The bundle's folder, already verified.
        shape: The clip's shape.
        threads: Not used: one stream feeds the GPU.

    Raises:
        EngineError: The bundle was not compiled on this machine, or the machine has changed since.
        MissingDependencyError: tensorrt or cuda-python is not installed.
        ToolchainError: TensorRT cannot load the engine, or CUDA fails.
    """

    threads = 1
    missing = None

    def __init__(self, folder: Path, shape: tuple[int, ...], threads: int = 0) -> None:
        trt, facts = _tensorrt(), machine()
        engine = open_engine("tensorrt", folder, facts)
        self.device, self.version = facts["device"], str(trt.__version__)
        self._layers, self._asked = engine.folder / "layers.json", _asked(folder)
        self._network = Network(trt, engine.folder / "model.plan", shape)

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits of one clip; `clip` must have the bundle's shape, uint8, RGB."""
        return self._network(clip)

    def layers(self, clip: NDArray[np.uint8]) -> tuple[()]:
        """None: TensorRT fuses them."""
        return ()

    def placement(self) -> Placement | NotMeasured:
        """Which kernel runs each layer, as the engine's inspector told when it was built."""
        try:
            found = _build_engine.placement(json.loads(self._layers.read_text()), **self._asked)
        except (_build_engine.BuildError, ValueError, KeyError, TypeError) as exc:
            return NotMeasured(f"the engine's inspector does not tell: {exc}")
        return placement_from(found)


class Network:
    """An engine on the GPU, with the memory of its clip and its logits: a call from one to the other.

    Args:
        trt: The module of TensorRT's Python API, or of TensorRT for RTX.
        plan: The serialized engine.
        shape: The clip's shape.

    Raises:
        MissingDependencyError: cuda-python is not installed.
        ToolchainError: TensorRT cannot load the engine, or CUDA fails.
    """

    def __init__(self, trt: Any, plan: Path, shape: tuple[int, ...]) -> None:
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise ToolchainError(f"TensorRT {trt.__version__} cannot load the engine {plan}: compile it again")
        self._cuda = _Cuda()
        self._clip = self._cuda.pinned(shape, np.uint8)
        self._logits = self._cuda.pinned(tuple(self._engine.get_tensor_shape("logits")), np.float32)
        self._buffers = (self._cuda.on_device(self._clip.nbytes), self._cuda.on_device(self._logits.nbytes))
        self._context = self._engine.create_execution_context()
        for name, address in zip(("clip", "logits"), self._buffers, strict=True):
            self._context.set_tensor_address(name, address)
        self._enqueue()  # what TensorRT sets up at its first run must not be recorded
        self._cuda.synchronize()
        self._launch = self._cuda.recorded(self._enqueue) or self._enqueue

    def _enqueue(self) -> None:
        there, result = self._buffers
        self._cuda.copy_in(there, self._clip)
        if not self._context.execute_async_v3(self._cuda.stream_handle):
            raise ToolchainError("TensorRT could not run the engine")
        self._cuda.copy_out(self._logits, result)

    def __call__(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 `[1, T, H, W, 3]` to float32 `[1, K]`."""
        np.copyto(self._clip, clip)
        self._launch()
        self._cuda.synchronize()
        return np.array(self._logits)


class _Cuda:
    """What of the CUDA runtime a runner needs; every failure is an error with CUDA's own name for it."""

    def __init__(self) -> None:
        try:
            try:
                from cuda.bindings import runtime
            except ImportError:  # cuda-python before 12.6
                from cuda import cudart as runtime
        except ImportError as exc:
            raise MissingDependencyError("cuda-python", "tensorrt", "running this bundle") from exc
        self._api: Any = runtime
        self._kind = runtime.cudaMemcpyKind
        self._stream = self._do("cudaStreamCreate")
        self.stream_handle = int(self._stream)

    def _do(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._api, name)(*arguments)
        if int(status) != 0:
            raise ToolchainError(f"CUDA: {name} failed: {status}")
        return values[0] if values else None

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array in page-locked memory, which the GPU reads and writes itself; it lives as long as the process."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self._do("cudaHostAlloc", size, 0)
        memory = (ctypes.c_uint8 * size).from_address(int(address))
        return np.frombuffer(memory, dtype).reshape(shape)

    def on_device(self, size: int) -> int:
        """Address of that many bytes; they live as long as the process."""
        return int(self._do("cudaMalloc", size))

    def copy_in(self, address: int, array: NDArray[Any]) -> None:
        """From a pinned array, in the stream's order."""
        self._copy(address, array.ctypes.data, array.nbytes, self._kind.cudaMemcpyHostToDevice)

    def copy_out(self, array: NDArray[Any], address: int) -> None:
        """Into a pinned array, in the stream's order."""
        self._copy(array.ctypes.data, address, array.nbytes, self._kind.cudaMemcpyDeviceToHost)

    def _copy(self, to: int, source: int, size: int, kind: Any) -> None:
        self._do("cudaMemcpyAsync", to, source, size, kind, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._do("cudaStreamSynchronize", self._stream)

    def recorded(self, enqueue: Any) -> Any:
        """A call that launches what `enqueue` puts into the stream as one CUDA graph; None where it cannot be one."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
            graph = self._do("cudaStreamEndCapture", self._stream)
            launchable = self._do("cudaGraphInstantiate", graph, 0)
        except ToolchainError:  # such as of layers on a DLA, or with loops: TensorRT Developer Guide, CUDA Graphs
            self._api.cudaStreamEndCapture(self._stream)
            return None
        return lambda: self._do("cudaGraphLaunch", launchable, self._stream)


def machine() -> dict[str, str]:
    """Every fact of this machine that an engine depends on.

    Raises:
        MissingDependencyError: tensorrt is not installed.
    """
    found = _build_engine.facts()
    return {name: found[name] for name in _build_engine.BOUND} | {"tensorrt": str(_tensorrt().__version__)}


def build(
    folder: Path, out: Path, clip: NDArray[np.uint8], threads: int, workspace_mb: int | None = None
) -> Mapping[str, Any]:
    """Build the engine of the artifact in `folder` on this machine into `out`.

    Returns:
        The device's power mode and clocks, which its latency depends on.

    Raises:
        BundleError: The artifact does not say what it is.
        MissingDependencyError: tensorrt is not installed.
        ToolchainError: TensorRT refuses the network, in its own words.
    """
    trt, asked = _tensorrt(), _asked(folder)
    timings = cache_dir() / "timing" / f"tensorrt-{trt.__version__}.cache"
    plan = build_plan(trt, folder / "model.onnx", **asked, workspace_mb=workspace_mb, timings=timings)
    (out / "model.plan").write_bytes(plan)
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
    inspector = engine.create_engine_inspector()
    (out / "layers.json").write_text(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return {**_build_engine.facts(), **asked}


def build_plan(
    trt: Any,
    onnx: Path,
    precision: str,
    accelerator: str,
    *,
    workspace_mb: int | None = None,
    timings: Path | None = None,
) -> bytes:
    """The serialized engine of an ONNX file.

    From TensorRT 10 on the network is strongly typed: each layer has the types of the ONNX, or the build fails.

    Args:
        trt: The module of TensorRT's Python API.
        onnx: The file.
        precision: That of the ONNX.
        accelerator: `gpu`, or `dla`, which leaves to the GPU what it cannot run.
        workspace_mb: Most memory that a kernel may use while it runs; all of it by default.
        timings: File of the timing cache of this device and release, read where it is there and written anew.

    Raises:
        ToolchainError: TensorRT cannot parse or build it; its own words.
    """
    flags = trt.NetworkDefinitionCreationFlag
    typed = int(trt.__version__.partition(".")[0]) >= 10 or not hasattr(flags, "EXPLICIT_BATCH")
    strong = typed and accelerator == "gpu"  # a DLA takes weakly typed networks alone
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED if strong else flags.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        error = parser.get_error(0)
        raise ToolchainError(f"TensorRT {trt.__version__} cannot parse the network: {error.desc()}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector tells no types
    if workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # which keeps 10 bits of the mantissa
    elif not strong:
        config.set_flag(trt.BuilderFlag.FP16 if precision == "fp16" else trt.BuilderFlag.INT8)
    if accelerator == "dla":
        config.default_device_type, config.DLA_core = trt.DeviceType.DLA, 0
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if timings is not None:
        known = timings.read_bytes() if timings.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ToolchainError(f"TensorRT {trt.__version__} cannot build an engine of this network in {precision}")
    if timings is not None:
        timings.parent.mkdir(parents=True, exist_ok=True)
        timings.write_bytes(config.get_timing_cache().serialize())
    return bytes(plan)


def _asked(folder: Path) -> dict[str, str]:
    """Precision and accelerator of the artifact; the file is untrusted."""
    try:
        told = json.loads((folder / "model.conformance.json").read_text())
        asked = {name: told[name] for name in ("precision", "accelerator")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise BundleError(f"{folder / 'model.conformance.json'} does not say what the network is: {exc}") from exc
    if asked["precision"] not in ("fp32", "fp16", "int8") or asked["accelerator"] not in ("gpu", "dla"):
        raise BundleError(f"{folder / 'model.conformance.json'} asks for {asked}, which no Jetson has")
    return asked


def _tensorrt() -> Any:
    try:
        import tensorrt
    except ImportError as exc:
        purpose = "running this bundle (a Jetson has it: make the environment with --system-site-packages)"
        raise MissingDependencyError("tensorrt", "tensorrt", purpose) from exc
    return tensorrt
