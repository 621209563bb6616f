"""TensorRT's Python API and the CUDA runtime as far as edgeact calls them, over ONNX Runtime and plain memory.

No TensorRT and no GPU can be had where the tests run; names, arguments and order of the calls are those of TensorRT 10
and cuda-python 12.
"""

import ctypes
import enum
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

__all__ = ["fake_cuda", "fake_tensorrt"]


class Flag(enum.IntEnum):
    EXPLICIT_BATCH, STRONGLY_TYPED = 0, 1


class Config:
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name != "log":
            self.log.append((name, value))

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.log.append((pool, size))

    def set_flag(self, flag: str) -> None:
        self.log.append(("set", flag))

    def clear_flag(self, flag: str) -> None:
        self.log.append(("clear", flag))

    def create_timing_cache(self, content: bytes) -> Any:
        self.log.append(("timing", content))
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"times")


def fake_tensorrt(version: str = "10.3.0", *, refuses: str = "", builds: bool = True) -> Any:
    """A module whose engines are the ONNX files themselves; `log` holds what was asked of the builder."""
    log: list[Any] = []

    class Parser:
        def __init__(self, network: Any, logger: Any) -> None:
            self.network = network

        def parse_from_file(self, file: str) -> bool:
            self.network.content = Path(file).read_bytes()
            return not refuses

        def get_error(self, index: int) -> Any:
            return SimpleNamespace(desc=lambda: refuses)

    class Builder:
        def __init__(self, logger: Any) -> None:
            pass

        def create_network(self, flags: int) -> Any:
            log.append(("network", flags))
            return SimpleNamespace()

        def create_builder_config(self) -> Config:
            return Config(log)

        def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
            return network.content if builds else None

    class Engine:
        def __init__(self, plan: bytes) -> None:
            self.session = onnxruntime.InferenceSession(plan)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(next(value.shape for value in self.session.get_outputs() if value.name == name))

        def create_execution_context(self) -> Any:
            return Context(self)

        def create_engine_inspector(self) -> Any:
            layer = {"Name": "stem/conv2d", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "FP16"}]}
            return SimpleNamespace(get_engine_information=lambda kind: json.dumps({"Layers": [layer]}))

    class Context:
        def __init__(self, engine: Engine) -> None:
            self.engine, self.addresses = engine, dict[str, int]()

        def set_tensor_address(self, name: str, address: int) -> None:
            self.addresses[name] = address

        def execute_async_v3(self, stream: int) -> bool:
            return bool(module.execute(self))  # which a CUDA graph records

    def compute(context: Context) -> None:
        shape = context.engine.session.get_inputs()[0].shape
        frames = ctypes.string_at(context.addresses["clip"], int(np.prod(shape)))
        clip = np.frombuffer(frames, np.uint8).reshape(shape)
        logits = context.engine.session.run(["logits"], {"clip": clip})[0].tobytes()
        ctypes.memmove(context.addresses["logits"], logits, len(logits))

    def execute(context: Context) -> bool:
        module.cuda.run(lambda: compute(context))
        return True

    module: Any = ModuleType("tensorrt")
    module.__version__, module.log, module.execute, module.cuda = version, log, execute, None
    module.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})
    module.NetworkDefinitionCreationFlag = Flag
    module.Builder, module.OnnxParser = Builder, Parser
    module.Runtime = lambda logger: SimpleNamespace(
        deserialize_cuda_engine=lambda plan: None if plan == b"of another GPU" else Engine(plan)
    )
    module.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    module.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    module.BuilderFlag = SimpleNamespace(FP16="fp16", INT8="int8", TF32="tf32", GPU_FALLBACK="gpu fallback")
    module.DeviceType = SimpleNamespace(DLA="dla")
    module.LayerInformationFormat = SimpleNamespace(JSON="json")
    return module


def fake_cuda(*, captures: bool = True, fails: str = "") -> Any:
    """`cuda.bindings.runtime`, whose one stream runs at once, or is recorded; `launches` counts graphs."""
    module: Any = ModuleType("cuda.bindings.runtime")
    memory: list[Any] = []
    recorded: list[Any] | None = None

    def run(what: Any) -> None:
        if recorded is None:
            what()
        else:
            recorded.append(what)

    def allocate(size: int, flags: int = 0) -> tuple[int, int]:
        memory.append((ctypes.c_uint8 * size)())
        return 0, ctypes.addressof(memory[-1])

    def copy(to: int, source: int, size: int, kind: str, stream: int) -> tuple[int]:
        run(lambda: ctypes.memmove(to, source, size))
        return (0,)

    def begin(stream: int, mode: str) -> tuple[int]:
        nonlocal recorded
        recorded = []
        return (0,)

    def end(stream: int) -> tuple[Any, ...]:
        nonlocal recorded
        graph, recorded = recorded, None
        return (0, graph) if captures else (900, None)

    def launch(graph: list[Any], stream: int) -> tuple[int]:
        module.launches += 1
        for what in graph:
            what()
        return (0,)

    module.run, module.launches = run, 0
    module.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")
    module.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
    module.cudaStreamCreate = lambda: (0, 7)
    module.cudaHostAlloc, module.cudaMalloc, module.cudaMemcpyAsync = allocate, allocate, copy
    module.cudaStreamSynchronize = lambda stream: (0,)
    module.cudaStreamBeginCapture, module.cudaStreamEndCapture = begin, end
    module.cudaGraphInstantiate = lambda graph, flags: (0, graph)
    module.cudaGraphLaunch = launch
    if fails:
        setattr(module, fails, lambda *arguments: (2, 0))
    return module
