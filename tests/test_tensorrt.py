"""The TensorRT runner and builder, over a stand-in for TensorRT and CUDA; the build also over TensorRT for RTX."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorrt_stand_in import fake_cuda, fake_tensorrt
from torch import nn

import edgeact
from edgeact.bundle import Bundle
from edgeact.clip import ClipSpec
from edgeact.compile import compile_bundle
from edgeact.errors import BundleError, EngineError, InputError, MissingDependencyError, ToolchainError
from edgeact.parity import Gates, NotMeasured
from edgeact.placement import Placement
from edgeact.runtime import _build_engine, load_runner
from edgeact.runtime import tensorrt as runner_module
from edgeact.runtime.tensorrt import build_plan
from edgeact.targets._tensorrt_rtx import parser_name

Install = Callable[..., Any]


@pytest.fixture(scope="module")
def bundle(videos: Path, tiny_spec: ClipSpec, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 12))
    gates = Gates(min_sqnr_db=40, min_agreement=0, max_drop_pt=100)
    settings: dict[str, Any] = {"data": videos, "clips": 12, "rounds": 1, "gates": gates, "name": "small"}
    out = tmp_path_factory.mktemp("bundles")
    return edgeact.export(model, target="jetson", precision="fp16", spec=tiny_spec, out=out, **settings)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Puts the stand-ins, made as asked, in the place of the packages; the machine's facts are those of a Jetson."""
    monkeypatch.setenv("EDGEACT_CACHE", str(tmp_path / "cache"))

    def put(trt: Any = None, cuda: Any = None, **facts: str) -> tuple[Any, Any]:
        trt, cuda = trt or fake_tensorrt(), cuda or fake_cuda()
        trt.cuda = cuda
        bindings = ModuleType("cuda.bindings")
        bindings.runtime = cuda  # type: ignore[attr-defined]
        modules: dict[str, Any] = {"tensorrt": trt, "cuda": ModuleType("cuda"), "cuda.bindings": bindings}
        modules["cuda.bindings.runtime"] = cuda
        for name, module in modules.items():
            module.__spec__ = SimpleNamespace(name=name)
            monkeypatch.setitem(sys.modules, name, module)
        told = {"device": "Jetson Orin Nano", "tensorrt": "10.3.0", "cuda": "12.6", "jetpack": "6.2"}
        told["power_mode"] = "15W"
        monkeypatch.setattr(_build_engine, "facts", lambda: told | facts)
        return trt, cuda

    return put


def test_compile_then_run(bundle: Bundle, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgeact\[tensorrt\]'"):
        compile_bundle(bundle)
    trt, cuda = install()
    with pytest.raises(EngineError, match="not compiled on this machine yet: run `edgeact compile "):
        edgeact.load(bundle)
    compiled = compile_bundle(bundle, rounds=2, workspace_mb=64)
    assert compiled.held, compiled.failures
    assert compiled.latency.device == "Jetson Orin Nano"
    assert compiled.stamp["built"]["power_mode"] == "15W"
    assert ("network", 2) in trt.log, "strongly typed"
    assert ("workspace", 64 << 20) in trt.log
    assert compiled.stamp["settings"] == {"workspace_mb": 64}
    assert not any(entry[0] == "set" for entry in trt.log), "types are those of the ONNX"
    assert cuda.launches > 0, "a CUDA graph"
    runner = edgeact.load(bundle)
    assert (runner.runtime, runner.proxy_for) == ("tensorrt", None)
    proxy = load_runner("onnxruntime", bundle.path, bundle.spec, 1)
    clip = bundle.golden()[0].frames[None]
    np.testing.assert_allclose(runner(clip), proxy(clip), rtol=1e-3)
    placement = runner.runner.placement()
    assert isinstance(placement, Placement)
    assert (placement.kind, placement.kernels) == ("measured", {"CaskConvolution FP16": 1})
    monkeypatch.setattr("edgeact.measure.peak_memory_mb", lambda *of: None)  # a process without the stand-ins
    report = edgeact.validate(bundle, rounds=2)
    assert report.held, report.failures
    assert report.latency.runtime == "tensorrt 10.3.0"  # type: ignore[union-attr]


def test_what_cannot_be_one_graph_runs_without(bundle: Bundle, install: Install) -> None:
    _, cuda = install(cuda=fake_cuda(captures=False))
    assert compile_bundle(bundle, rounds=1).held
    assert cuda.launches == 0


def test_an_engine_of_another_jetpack(bundle: Bundle, install: Install) -> None:
    install()
    compile_bundle(bundle, rounds=1)
    install(jetpack="6.0")
    with pytest.raises(EngineError, match=r"for the jetpack '6\.2', and here it is '6\.0': run `edgeact compile "):
        edgeact.load(bundle)


def test_a_timing_cache_is_kept(bundle: Bundle, install: Install) -> None:
    trt, _ = install()
    compile_bundle(bundle, rounds=1)
    compile_bundle(bundle, rounds=1, force=True)
    assert [content for name, content in trt.log if name == "timing"] == [b"", b"times"]


def test_what_tensorrt_refuses(bundle: Bundle, install: Install, tmp_path: Path) -> None:
    install(fake_tensorrt(refuses="no importer for Det"))
    with pytest.raises(ToolchainError, match=r"TensorRT 10\.3\.0 cannot parse the network: no importer for Det"):
        compile_bundle(bundle)
    install(fake_tensorrt(builds=False))
    with pytest.raises(ToolchainError, match=r"TensorRT 10\.3\.0 cannot build an engine of this network in fp16"):
        compile_bundle(bundle)
    assert not list((tmp_path / "cache").rglob("model.plan"))


def test_what_cuda_refuses(bundle: Bundle, install: Install) -> None:
    install()
    compile_bundle(bundle, rounds=1)
    install(cuda=fake_cuda(fails="cudaMalloc"))
    with pytest.raises(ToolchainError, match="CUDA: cudaMalloc failed: 2"):
        edgeact.load(bundle)
    trt, _ = install()
    trt.execute = lambda context: False
    with pytest.raises(ToolchainError, match="TensorRT could not run the engine"):
        edgeact.load(bundle)


def test_an_engine_that_does_not_load(bundle: Bundle, install: Install) -> None:
    trt, _ = install()
    compile_bundle(bundle, rounds=1)
    trt.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: None)
    with pytest.raises(ToolchainError, match=r"TensorRT 10\.3\.0 cannot load the engine .*: compile it again"):
        edgeact.load(bundle)


def test_without_cuda_python(bundle: Bundle, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    compile_bundle(bundle, rounds=1)
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="running this bundle needs cuda-python"):
        edgeact.load(bundle)


def test_layers_that_the_inspector_does_not_tell(bundle: Bundle, install: Install) -> None:
    install()
    compile_bundle(bundle, rounds=1)
    runner: Any = edgeact.load(bundle).runner
    runner._layers.write_text('{"Layers": ["stem"]}')
    assert isinstance(runner.placement(), NotMeasured)


def test_an_artifact_that_does_not_say_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not say what the network is"):
        runner_module._asked(tmp_path)
    (tmp_path / "model.conformance.json").write_text(json.dumps({"precision": "fp64", "accelerator": "gpu"}))
    with pytest.raises(BundleError, match=r"asks for .*fp64.*, which no Jetson has"):
        runner_module._asked(tmp_path)


def test_the_workspace_is_of_tensorrt(videos: Path, tiny_spec: ClipSpec) -> None:
    from edgeact.runtime import compile_engine

    clip = np.zeros((1, *tiny_spec.clip_shape), np.uint8)
    with pytest.raises(InputError, match="a limit of the workspace is of tensorrt, and aotinductor has none"):
        compile_engine("aotinductor", videos, clip, workspace_mb=64)


def test_older_releases_are_asked_by_flags(bundle: Bundle) -> None:
    onnx = bundle.path / "model.onnx"
    for precision, flag in (("fp16", ("set", "fp16")), ("int8", ("set", "int8")), ("fp32", ("clear", "tf32"))):
        trt = fake_tensorrt("8.5.2")
        build_plan(trt, onnx, precision, "gpu")
        assert ("network", 1) in trt.log, "explicit batch"
        assert [entry for entry in trt.log if entry[0] in ("set", "clear")] == [flag]
    trt = fake_tensorrt()
    build_plan(trt, onnx, "fp16", "dla")
    assert {("default_device_type", "dla"), ("DLA_core", 0), ("set", "fp16"), ("set", "gpu fallback")} <= set(trt.log)


@pytest.mark.skipif(parser_name() is None, reason="tensorrt_rtx_bindings is not installed")
def test_a_real_builder_builds_the_plan(bundle: Bundle) -> None:
    import tensorrt_rtx_bindings as rtx

    class Builder:
        """Without a GPU it must be told for which it builds."""

        def __init__(self, logger: Any) -> None:
            self.real = rtx.Builder(logger)
            self.create_network = self.real.create_network
            self.build_serialized_network = self.real.build_serialized_network

        def create_builder_config(self) -> Any:
            config = self.real.create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
            return config

    module = SimpleNamespace(**{name: getattr(rtx, name) for name in dir(rtx)} | {"Builder": Builder})
    plan = build_plan(module, bundle.path / "model.onnx", "fp16", "gpu", workspace_mb=64)
    assert len(plan) > 1000


def test_an_rtx_card_is_offered_tensorrt_for_rtx(
    videos: Path, tiny_spec: ClipSpec, tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeact._capture import behind_uint8, eager, fold
    from edgeact.runtime import _candidates
    from edgeact.targets import Request, get_target

    rtx, cuda = install(fake_tensorrt("1.7.1"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", rtx)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, 4, 3, 2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 12)).eval()
    get_target("gpu").compile(behind_uint8(fold(model, tiny_spec), tiny_spec), tmp_path, Request("fp32"))
    shape = (1, *tiny_spec.clip_shape)
    clip = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert "tensorrt-rtx" not in _candidates.candidates(tmp_path, shape, "cpu", 1)
    offered = _candidates.candidates(tmp_path, shape, "cuda", 1)
    (tmp_path / "out").mkdir()
    expected = eager(model, tiny_spec)(clip)
    told = _candidates.choose({"tensorrt-rtx": offered["tensorrt-rtx"]}, tmp_path / "out", clip, expected, 80)
    assert told["chosen"] == "tensorrt-rtx"
    assert cuda.launches > 0
    call = _candidates.load_candidate("tensorrt-rtx", tmp_path, tmp_path / "out", shape, "cuda", 1)
    np.testing.assert_allclose(call(clip), expected, rtol=1e-4, atol=1e-6)
