"""The jetson target: what its ONNX looks like, which rule refuses what, and the proxy that runs it here."""

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from int8_networks import calibrated
from torch import Tensor, nn

import edgeact
from edgeact._capture import behind_uint8, eager, fold, lower_and_prove, run_program
from edgeact.clip import ClipSpec
from edgeact.diff import diff
from edgeact.errors import BundleError, InputError, ToolchainError
from edgeact.forecast import forecast
from edgeact.numerics import Numerics, compare_outputs
from edgeact.parity import Gates, NotMeasured
from edgeact.placement import IN_FLOAT, Placement, read_placement
from edgeact.quantize.options import Calibration, Int8
from edgeact.quantize.scheme import PORTABLE
from edgeact.runtime import load_runner
from edgeact.targets import Request, check_options, get_target
from edgeact.targets._qdq import fuse, groups_of
from edgeact.targets._tensorrt_rtx import parser_name, refused
from edgeact.targets._tensorrt_rules import RELEASES, compute_ops, refused_nodes


class Residual(nn.Module):
    """A dense and a depthwise block, each with a residual, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv3d(3, 8, (3, 5, 5), (1, 2, 2), (1, 2, 2))
        self.dense = nn.Sequential(nn.Conv3d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv3d(8, 8, 1))
        self.depthwise = nn.Sequential(nn.Conv3d(8, 8, 1), nn.ReLU(), nn.Conv3d(8, 8, 3, 1, 1, groups=8))
        self.head = nn.Linear(8, 12)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip).relu()
        x = (x + self.dense(x)).relu()
        x = (x + self.depthwise(x)).relu()
        logits: Tensor = self.head(x.mean((2, 3, 4)))
        return logits


@pytest.fixture(scope="module")
def clips(tiny_spec: ClipSpec) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, *tiny_spec.clip_shape), dtype=np.uint8) for _ in range(3)]


def written(
    folder: Path, spec: ClipSpec, clips: list[Any], precision: str, form: str = "folded", **options: str
) -> tuple[onnx.ModelProto, Any]:
    """The ONNX of the residual network in `folder`, and the program it was written from."""
    network = calibrated(Residual(), clips, spec, PORTABLE) if precision == "int8" else fold(Residual().eval(), spec)
    program = lower_and_prove(behind_uint8(network, spec), form, clips[0])
    get_target("jetson").compile(program, folder, Request(precision, check_options("jetson", options)))
    return onnx.load(folder / "model.onnx"), program


@pytest.mark.parametrize("form", ["folded", "unrolled", "volumetric"])
def test_the_onnx_of_a_float_network(form: str, tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path) -> None:
    model, program = written(tmp_path, tiny_spec, clips, "fp32", form)
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    (clip,), (logits,) = model.graph.input, model.graph.output
    assert (clip.name, clip.type.tensor_type.elem_type) == ("clip", onnx.TensorProto.UINT8)
    assert [dim.dim_value for dim in clip.type.tensor_type.shape.dim] == [1, *tiny_spec.clip_shape]
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    layers = {name.rpartition("/")[0] for name in names}
    assert {"stem", "dense.0", "dense.2", "depthwise.2", "head"} <= layers, "profiles name the user's layers"
    assert not any(node.metadata_props for node in model.graph.node), "they hold paths of this machine"
    runner = load_runner("onnxruntime", tmp_path, tiny_spec, 1)
    np.testing.assert_allclose(runner(clips[0]), run_program(program)(clips[0]), rtol=1e-4, atol=1e-5)


def test_fp16_is_float16_up_to_the_logits(tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path) -> None:
    model, _ = written(tmp_path, tiny_spec, clips, "fp16")
    kinds = Counter(tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 0)
    assert kinds[onnx.TensorProto.FLOAT] == 0
    assert kinds[onnx.TensorProto.FLOAT16] > 0
    outputs = load_runner("onnxruntime", tmp_path, tiny_spec, 1)(clips[0])
    sqnr_db, _, _ = compare_outputs(eager(Residual().eval(), tiny_spec)(clips[0]), outputs)
    assert 45 < sqnr_db < 90


def test_int8_is_symmetric_and_nothing_stands_between_a_convolution_and_its_add(
    tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path
) -> None:
    model, program = written(tmp_path, tiny_spec, clips, "int8")
    producer = {name: node for node in model.graph.node for name in node.output}
    sources = [
        sorted(producer[name].op_type for name in node.input if name in producer)
        for node in model.graph.node
        if node.op_type == "Add"
    ]
    assert ["Conv", "DequantizeLinear"] in sources, "the dense block's last convolution"
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert all(producer[name].op_type == "DequantizeLinear" for name in node.input[:2]), node.name

    def is_rounded(relu: onnx.NodeProto) -> bool:
        """Whether what a ReLU reads is rounded, though a convolution or an add could be one kernel with it."""
        dequantize = producer[relu.input[0]]
        if dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in producer:
            return False
        return producer[producer[dequantize.input[0]].input[0]].op_type in ("Conv", "Add")

    grouped = [node for node in model.graph.node if node.op_type == "Conv" and groups_of(node) > 1]
    assert grouped
    for node in grouped:
        readers = [reader.op_type for reader in model.graph.node if node.output[0] in reader.input]
        assert readers == ["QuantizeLinear"], "int8 depthwise kernels have no add"
    assert not [node.name for node in model.graph.node if node.op_type == "Relu" and is_rounded(node)]
    assert producer["logits"].op_type == "Gemm", "logits are not rounded"
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    outputs = load_runner("onnxruntime", tmp_path, tiny_spec, 1)(clips[0])
    sqnr_db, _, _ = compare_outputs(run_program(program)(clips[0]), outputs)
    assert sqnr_db > 25, "it rounds once less than the simulation"


def test_tensorrt_8_gets_its_weights_in_float(tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path) -> None:
    for jetpack in ("6.2", "5.1"):
        (tmp_path / jetpack).mkdir()
        written(tmp_path / jetpack, tiny_spec, clips, "int8", jetpack=jetpack)
    new, old = (load_runner("onnxruntime", tmp_path / jetpack, tiny_spec, 1) for jetpack in ("6.2", "5.1"))
    np.testing.assert_array_equal(new(clips[1]), old(clips[1]))
    model = onnx.load(tmp_path / "5.1" / "model.onnx")
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    read = [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert not set(read) & set(constants), "a QuantizeLinear stands before each"
    assert not refused_nodes(model, RELEASES["5.1"], "gpu")
    refused_there = refused_nodes(onnx.load(tmp_path / "6.2" / "model.onnx"), RELEASES["5.1"], "gpu")
    assert all(
        "takes constants in float, behind a QuantizeLinear" in refusal.reason for refusal in refused_there.values()
    )
    assert refused_there


def test_adds_of_what_others_read_stay(tiny_spec: ClipSpec) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[1,2,4,4] x, float[2,2,1,1] w, float s, int8 z) => (float[1,2,4,4] y, float[1,2,4,4] other) {
            c = Conv(x, w)
            q = QuantizeLinear(c, s, z)
            d = DequantizeLinear(q, s, z)
            y = Add(d, d)
            other = Identity(d)
        }"""
    )
    before = model.SerializeToString()
    fuse(model)
    assert model.SerializeToString() == before


RULES = {
    "not among the ops of TensorRT 10.3": "y = Det(x)",
    "its input has 3 dimensions, and pools are 2D or 3D": "y = MaxPool <kernel_shape=[2]> (x3)",
    "a uint8 input is cast to float before anything else": "y = Transpose <perm=[0, 2, 1]> (u8)",
    "its zero point is not the constant 0": "y = QuantizeLinear(x, s, one)",
    "it is int32, not int8": "y = DequantizeLinear(bias, s, z32)",
    "its scale is not a positive constant": "y = QuantizeLinear(x, none, z)",
    "an activation has one scale, not one per channel": "y = QuantizeLinear <axis=1> (x, two, zz)",
    "weights have a scale per output channel, axis 0, not 1": "y = DequantizeLinear <axis=1> (w8, two, zz)",
    "a grouped 3D convolution has no int8 kernel": "y = Conv <group=2> (v, w3)",
    "in int8 the channels of a group are a multiple of 4, not 2 and 2": "d = DequantizeLinear(w8, s, z)\n"
    "y = Conv <group=2> (x4, d)",
    "followed by nothing or a ReLU, not by Sigmoid": "d = DequantizeLinear(w1, s, z)\nc = Conv <group=2> (x, d)\n"
    "y = Sigmoid(c)",
    "runs in float, since its input or its weight is not int8": "q = QuantizeLinear(x, s, z)\ny = Conv(x, w)",
}


def small(lines: str) -> onnx.ModelProto:
    """A model of these nodes, with the constants that they name."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[1,2,4,4] x, float[1,4,4,4] x4, float[1,2,4] x3, float[1,2,4,4,4] v, uint8[1,2,4] u8) => (float y)
        <float s = {{0.5}}, float none = {{0}}, float[2] two = {{0.5, 0.25}},
         float[4] four = {{1, 1, 1, 1}}, int8 z = {{0}}, int8[2] zz = {{0, 0}},
         int8 one = {{1}}, int32[2] bias = {{1, 2}}, int32 z32 = {{0}}> {{ {lines} }}"""
    )
    shapes = {"w": (2, 2, 1, 1), "w2": (4, 2, 1, 1), "w3": (2, 1, 1, 1, 1), "wt": (4, 1, 1, 1)}
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    weights |= {"w8": np.ones((4, 2, 1, 1), np.int8), "w1": np.ones((2, 1, 1, 1), np.int8)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    for i, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{i}"
    model.graph.output[0].type.tensor_type.ClearField("shape")  # it is inferred
    return model


@pytest.mark.parametrize("reason", RULES)
def test_a_rule_refuses_what_breaks_it(reason: str) -> None:
    refused = refused_nodes(small(RULES[reason]), RELEASES["6.2"], "gpu")
    found = [refusal for refusal in refused.values() if reason in refusal.reason]
    assert len(found) == 1, refused
    assert found[0].reason.endswith(")"), "its source"
    assert found[0].runs == ("grouped 3D" in reason or "in float" in reason)


def test_a_pad_is_of_the_oldest_opset(tiny_spec: ClipSpec, tmp_path: Path) -> None:
    class Padded(nn.Module):
        def forward(self, clip: Tensor) -> Tensor:
            return torch.nn.functional.pad(clip, (1, 1, 1, 1), value=0.5).mean((2, 3, 4))

    program = behind_uint8(fold(Padded(), tiny_spec), tiny_spec)
    get_target("jetson").compile(program, tmp_path, Request("fp32", check_options("jetson", {"jetpack": "5.1"})))
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 17


def test_int8_is_asked_of_a_float_model() -> None:
    model = small("y = Conv <group=2> (x4, w2)")
    assert not refused_nodes(model, RELEASES["6.2"], "gpu")
    (refusal,) = refused_nodes(model, RELEASES["6.2"], "gpu", int8=True).values()
    assert "in int8 the channels of a group are a multiple of 4, not 2 and 2" in refusal.reason


def test_what_a_newer_tensorrt_takes() -> None:
    model = small("y = LayerNormalization(x3, four)")
    assert not refused_nodes(model, RELEASES["6.0"], "gpu")
    (refusal,) = refused_nodes(model, RELEASES["5.1"], "gpu").values()
    assert "not among the ops of TensorRT 8.5.2" in refusal.reason


DLA = {
    "not among the DLA's layers": "y = Softplus(x)",
    "its output has 5 dimensions": "y = Relu(v)",
    "it parts or joins a batch": "y = Concat <axis=0> (x, x)",
    "its group [2] are not all within 1 to 1": "y = ConvTranspose <group=2> (x4, wt)",
    "its kernel_shape [9, 9] are not all within 1 to 8": "y = MaxPool <kernel_shape=[9, 9], pads=[7, 7, 7, 7]> (x)",
}


@pytest.mark.parametrize("reason", DLA)
def test_a_dla_leaves_to_the_gpu(reason: str) -> None:
    model = small(DLA[reason])
    assert not refused_nodes(model, RELEASES["6.2"], "gpu")
    (refusal,) = refused_nodes(model, RELEASES["6.2"], "dla").values()
    assert reason in refusal.reason
    assert refusal.runs


class Normed(nn.Module):
    """A LayerNorm, which JetPack 5.1 does not read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.LayerNorm(3), nn.Linear(3, 12)

    def forward(self, clip: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(clip.mean((2, 3, 4))))
        return logits


def test_a_network_that_the_jetpack_cannot_build(videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"of JetPack 5\.1 would not build 1 of \d+ nodes, first norm/"):
        edgeact.export(
            Normed(), target="jetson", options={"jetpack": "5.1"}, spec=tiny_spec, data=videos, out=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_bundle_and_its_proxy(precision: str, videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    gates = Gates(min_sqnr_db={"fp16": 45.0, "int8": 10.0}[precision], min_agreement=0, max_drop_pt=100)
    int8 = Int8(calibration=Calibration(clips=12, observer="min-max")) if precision == "int8" else None
    settings: dict[str, Any] = {"data": videos, "clips": 12, "threads": 1, "rounds": 1, "gates": gates, "int8": int8}
    bundle = edgeact.export(Residual(), target="jetson", precision=precision, spec=tiny_spec, out=tmp_path, **settings)
    report = bundle.report()
    assert report.held, report.failures
    assert report.form == "folded"
    assert isinstance(report.placement, Placement)
    assert (report.placement.kind, report.placement.fallback_ops) == ("estimated", 0)
    assert report.placement.kernels["GPU Conv"] > 5
    assert report.latency == NotMeasured("the device alone tells: onnxruntime is a proxy for tensorrt")
    assert any(note.startswith("proxy: onnxruntime ") for note in report.notes)
    assert any("held against NVIDIA's rules for TensorRT 10.3 (JetPack 6.2)" in note for note in report.notes)
    assert {file.name for file in bundle.path.iterdir()} >= {"model.onnx", "model.conformance.json", "build_engine.py"}
    assert diff(bundle, bundle).ran_on == ("onnxruntime, proxy for tensorrt",) * 2
    here = edgeact.validate(bundle, threads=1, rounds=1)
    assert here.held, here.failures
    assert here.placement == report.placement, "NVIDIA's rules for the device, as at the export"
    assert isinstance(here.numerics, Numerics)


def test_a_layer_kept_in_float_is_told_and_allowed(videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    gates = Gates(min_sqnr_db=10, min_agreement=0, max_drop_pt=100)
    int8 = Int8(calibration=Calibration(clips=12, observer="min-max"), keep_float=("dense.2",))
    settings: dict[str, Any] = {"data": videos, "clips": 12, "rounds": 1, "gates": gates, "int8": int8}
    report = edgeact.export(
        Residual(), target="jetson", precision="int8", spec=tiny_spec, out=tmp_path, **settings
    ).report()
    assert report.held, report.failures
    assert isinstance(report.placement, Placement)
    assert all(name.endswith(IN_FLOAT) for name in report.placement.fallback)
    assert any(name.startswith("dense.2/") for name in report.placement.fallback)
    assert any("what the layers in float cost is not measured: a device alone tells" in note for note in report.notes)


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(InputError, match="does not export int8 with accelerator dla: a DLA reads no Q/DQ"):
        check_options("jetson", {"accelerator": "dla"}, "int8")
    assert check_options("jetson", {"accelerator": "dla"}, "fp16") == {"jetpack": "6.2", "accelerator": "dla"}


def test_a_dla_bundle_tells_what_the_gpu_runs(tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path) -> None:
    model, _ = written(tmp_path, tiny_spec, clips, "fp16", "unrolled", accelerator="dla")
    told = read_placement(tmp_path)
    assert not told.fallback, "its head is a pooling and a convolution"
    assert told.accelerated_ops == len(compute_ops(model))
    assert {unit for layer in told.layers for unit in layer.units} == {"DLA"}
    assert told.crossing_bytes == math.prod(tiny_spec.clip_shape) + 4 * 12
    assert not {"Gemm", "ReduceMean"} & {node.op_type for node in model.graph.node}
    outputs = load_runner("onnxruntime", tmp_path, tiny_spec, 1)(clips[0])
    sqnr_db, _, _ = compare_outputs(eager(Residual().eval(), tiny_spec)(clips[0]), outputs)
    assert sqnr_db > 45


@pytest.mark.skipif(parser_name() is None, reason="tensorrt_rtx_bindings is not installed")
def test_a_real_parser_reads_it(
    tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for precision in ("fp16", "int8"):
        folder = tmp_path / precision
        folder.mkdir()
        written(folder, tiny_spec, clips, precision)  # which parses it
        parsed_by = json.loads((folder / "model.conformance.json").read_text())["parsed_by"]
        assert parsed_by.startswith("TensorRT for RTX 1.")
    onnx.save(small("y = Det(x)"), tmp_path / "det.onnx")
    stopped = refused(tmp_path / "det.onnx")
    assert stopped is not None
    assert stopped[0] == "Det_0"
    monkeypatch.setattr("edgeact.targets._tensorrt_rtx.refused", lambda file: ("stem/conv2d", "of no use"))
    with pytest.raises(ToolchainError, match=r"TensorRT for RTX .* cannot parse node 'stem/conv2d': of no use"):
        written(folder, tiny_spec, clips, "fp16")
    model = Residual().eval()
    found = forecast(model, target="jetson", spec=tiny_spec)
    assert not found.runs
    assert [layer.name for layer in found.layers if layer.support == "cannot run"] == ["stem"]
    assert "and the parser of TensorRT for RTX 1." in found.notes[0]


def test_without_the_parser_the_report_says_so(
    tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    program = lower_and_prove(behind_uint8(fold(Residual().eval(), tiny_spec), tiny_spec), "folded", clips[0])
    (note,) = get_target("jetson").compile(program, tmp_path, Request("fp32", check_options("jetson", {})))
    assert "no real parser: pip install 'edgeact[tensorrt-rtx]'" in note


def test_a_proxy_of_damaged_files(tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path) -> None:
    written(tmp_path, tiny_spec, clips, "fp32")
    runner = load_runner("onnxruntime", tmp_path, tiny_spec, 1)
    with pytest.raises(ToolchainError, match="ONNX Runtime cannot run this model: "):
        runner(clips[0][:, :1])
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ToolchainError, match=r"ONNX Runtime cannot load .*model\.onnx"):
        load_runner("onnxruntime", tmp_path, tiny_spec, 1)
    (tmp_path / "placement.json").write_text("{}")
    with pytest.raises(BundleError, match="does not say where each op runs"):
        load_runner("onnxruntime", tmp_path, tiny_spec, 1)


def test_an_op_without_an_onnx_form(tiny_spec: ClipSpec, tmp_path: Path) -> None:
    class Median(nn.Module):
        def forward(self, clip: Tensor) -> Tensor:
            return torch.linalg.matrix_exp(clip[:, :, 0, :12, :12]).mean((1, 2))

    program = behind_uint8(fold(Median(), tiny_spec), tiny_spec)
    with pytest.raises(ToolchainError, match="torch cannot write this network as ONNX: "):
        get_target("jetson").compile(program, tmp_path, Request("fp32", check_options("jetson", {})))


class Grouped(nn.Module):
    """Groups of two channels, for which int8 has no kernel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv3d(3, 8, 3), nn.Linear(8, 12)
        self.grouped = nn.Conv3d(8, 8, (1, 3, 3), groups=4)

    def forward(self, clip: Tensor) -> Tensor:
        logits: Tensor = self.head(self.grouped(self.conv(clip)).mean((2, 3, 4)))
        return logits


def test_check_asks_in_a_precision(tiny_spec: ClipSpec) -> None:
    model = Grouped().eval()
    assert forecast(model, target="jetson", spec=tiny_spec, precision="fp16").runs
    found = forecast(model, target="jetson", spec=tiny_spec, precision="int8")
    (layer,) = [layer for layer in found.layers if layer.support == "cannot run"]
    assert layer.name == "grouped"
    assert "a multiple of 4, not 2 and 2 (TensorRT API, IConvolutionLayer::setNbGroups)" in layer.reason
    with pytest.raises(InputError, match="does not export int8 with accelerator dla"):
        forecast(model, target="jetson", spec=tiny_spec, precision="int8", options={"accelerator": "dla"})


def test_an_opset_that_the_jetpack_does_not_read(tiny_spec: ClipSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeact.targets._onnx._downgraded", lambda model: model)
    with pytest.raises(InputError, match=r"needs ONNX opset 18, and JetPack 5\.1 reads up to 17: choose a newer"):
        forecast(Grouped(), target="jetson", spec=tiny_spec, options={"jetpack": "5.1"})
