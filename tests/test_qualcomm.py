"""The qualcomm target: its ONNX, the compiler in its process, the cache, the emulator, and the forecast."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from int8_networks import calibrated
from onnx import numpy_helper
from torch import Tensor, nn

import edgeact
from edgeact._capture import behind_uint8, fold, lower_and_prove, quiet_torchao, run_program
from edgeact.clip import ClipSpec
from edgeact.errors import InputError, MissingDependencyError, ToolchainError, UnknownNameError
from edgeact.forecast import forecast
from edgeact.numerics import Numerics, compare_outputs
from edgeact.parity import Gates, NotMeasured
from edgeact.placement import IN_FLOAT, Placement, read_placement
from edgeact.quantize.scheme import AFFINE
from edgeact.runtime import load_runner, qnn, sample_of
from edgeact.runtime._onnxruntime import import_onnxruntime, session_options
from edgeact.targets import Request, _qnn_compiler, check_options, get_target
from edgeact.targets._htp_graph import for_htp, frames_first
from edgeact.targets._htp_rules import FLOAT, placed, refused_nodes
from edgeact.targets._onnx import to_onnx

TARGET = get_target("qualcomm")
FORMS = ("unrolled", "folded", "volumetric")


class Residual(nn.Module):
    """A stem, a depthwise block with a residual, and a head; no pooling in 3-D, which HTP does not have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv3d(3, 8, (3, 5, 5), (1, 2, 2), (1, 2, 2))
        self.block = nn.Sequential(nn.Conv3d(8, 8, 1), nn.ReLU(), nn.Conv3d(8, 8, 3, 1, 1, groups=8))
        self.head = nn.Linear(8, 12)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip).relu()
        logits: Tensor = self.head((x + self.block(x)).relu().mean((2, 3, 4)))
        return logits


class Erf(Residual):
    """With an op that QNN's provider has no builder for."""

    def forward(self, clip: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.erf(self.stem(clip)).mean((2, 3, 4)))
        return logits


@pytest.fixture(scope="module")
def clips(tiny_spec: ClipSpec) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, *tiny_spec.clip_shape), dtype=np.uint8) for _ in range(3)]


def program_of(spec: ClipSpec, clips: list[Any], precision: str = "int8", form: str = "unrolled") -> Any:
    network = calibrated(Residual(), clips, spec, AFFINE) if precision == "int8" else fold(Residual().eval(), spec)
    return lower_and_prove(behind_uint8(network, spec), form, clips[0])


def compiled(folder: Path, program: Any, precision: str = "int8", **options: str) -> tuple[str, ...]:
    folder.mkdir(exist_ok=True)
    return TARGET.compile(program, folder, Request(precision, check_options("qualcomm", options, precision)))


def on_cpu(model: onnx.ModelProto, clip: Any) -> Any:
    options = session_options(1)
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    ort = import_onnxruntime()
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"clip": clip})[0]


def test_a_padded_pooling_of_two_in_float16(tmp_path: Path) -> None:
    """As C3D's pool5, on a map of even size: the binary is compared with its graph, or nothing is written."""
    pooled = nn.Sequential(nn.Conv3d(3, 4, 1), nn.MaxPool3d(2, 2, (0, 1, 1)), nn.Flatten(), nn.Linear(4 * 25, 3))
    spec = ClipSpec(frames=2, frame_stride=1, short_side=8, crop_height=8, crop_width=8)
    clip = np.random.default_rng(0).integers(0, 256, (1, *spec.clip_shape), dtype=np.uint8)
    program = lower_and_prove(behind_uint8(fold(pooled.eval(), spec), spec), "unrolled", clip)
    (told, *_) = compiled(tmp_path / "artifact", program, "fp16")
    assert float(told.partition("emulator ")[2].partition(" dB")[0]) > 50
    placement = load_runner("qnn", tmp_path / "artifact", spec).placement()
    assert isinstance(placement, Placement)
    assert placement.fallback_ops == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("activations", "kind", "least_db"), [("int8", np.uint8, 25), ("int16", np.uint16, 30)])
def test_the_onnx_is_integers_from_the_clip_to_the_logits(
    activations: str, kind: Any, least_db: float, form: str, tiny_spec: ClipSpec, clips: list[Any]
) -> None:
    program = program_of(tiny_spec, clips, form=form)
    model = to_onnx(program, "int8")
    before = on_cpu(model, clips[0])
    for_htp(model, activations)
    onnx.checker.check_model(model)
    producer = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert constants.keys() <= {name for node in model.graph.node for name in node.input}, "nothing is left over"
    readers = [node for node in model.graph.node if "clip" in node.input]
    assert [node.op_type for node in readers] == ["DequantizeLinear"], "nothing but levels is read of the pixels"
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight = producer[node.input[1]]
            assert constants[weight.input[0]].dtype == np.int8, "weights keep their type"
            assert producer[node.input[0]].op_type == "DequantizeLinear", node.name
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[2]].dtype == kind, node.name
        if node.op_type == "Conv":
            (reader,) = {other.op_type for other in model.graph.node if node.output[0] in other.input}
            assert reader in ("QuantizeLinear", "Relu"), "without, weights come to HTP as run-time tensors"
    after = on_cpu(model, clips[0])
    if activations == "int8":
        assert compare_outputs(before, after)[0] > least_db
    assert compare_outputs(run_program(program)(clips[0]), after)[0] > least_db


def test_the_mean_over_frames_is_in_integers_and_what_is_not_is_told(tiny_spec: ClipSpec, clips: list[Any]) -> None:
    def kernels(form: str, *, split_grids: bool = False) -> set[str]:
        model = to_onnx(program_of(tiny_spec, clips, form=form), "int8")
        if split_grids:
            adds = {node.output[0]: node for node in model.graph.node if node.op_type == "Add"}
            (mean,) = (node for node in model.graph.node if node.op_type == "ReduceMean")
            frame = adds[mean.input[0]].input[1]
            (dequantize,) = (node for node in model.graph.node if frame in node.output)
            scale = next(each for each in model.graph.initializer if each.name == dequantize.input[1])
            other = numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(2), "another")
            model.graph.initializer.append(other)
            dequantize.input[1] = "another"
        for_htp(model, "int8")
        onnx.checker.check_model(model)
        return {op.kernel for op in placed(model) if op.kernel.endswith(FLOAT)}

    assert kernels("unrolled") == set()
    assert kernels("volumetric") == set()
    assert kernels("folded") == {"ReduceMean in float"}, "over each frame, then over frames, no grid between"
    assert kernels("unrolled", split_grids=True) == {"Add in float", "ReduceMean in float", "Mul in float"}


def test_a_chip_without_float16_gets_a_network_with_a_mean(
    tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path
) -> None:
    told = compiled(tmp_path, program_of(tiny_spec, clips), soc="QCM6490")
    assert told[0].startswith("for QCM6490")
    assert not any("in float" in each for each in told)


def test_int16_is_closer_to_the_float_network_than_int8(tiny_spec: ClipSpec, clips: list[Any]) -> None:
    program, exact = program_of(tiny_spec, clips), run_program(program_of(tiny_spec, clips, "fp16"))
    found = {}
    for activations in ("int8", "int16"):
        model = to_onnx(program, "int8")
        for_htp(model, activations)
        pairs = [(exact(clip), on_cpu(model, clip)) for clip in clips]
        found[activations], _, _ = compare_outputs(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
    assert found["int16"] > found["int8"] + 3, found


@pytest.mark.parametrize("form", FORMS)
def test_frames_of_a_float_network_are_the_same_in_4d(form: str, tiny_spec: ClipSpec, clips: list[Any]) -> None:
    model = to_onnx(program_of(tiny_spec, clips, "fp16", form), "fp32")
    before = on_cpu(model, clips[0])
    frames_first(model)
    onnx.checker.check_model(model)
    assert not any(node.op_type == "Cast" for node in model.graph.node)
    np.testing.assert_allclose(on_cpu(model, clips[0]), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "options", "least_db"),
    [("int8", {}, 30), ("int8", {"activations": "int16", "soc": "SM8550"}, 35), ("fp16", {}, 45)],
)
def test_one_context_binary_that_the_emulator_runs(
    precision: str, options: dict[str, str], least_db: float, tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path
) -> None:
    program = program_of(tiny_spec, clips, precision)
    told, *_ = compiled(tmp_path, program, precision, **options)
    assert told.startswith(f"for {options.get('soc', 'SM8650')}: compiled by QNN 2.")
    names = {"model.context.bin", "model.context.onnx", "model.onnx", "placement.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    wrapper = onnx.load(tmp_path / "model.context.onnx")
    assert [node.op_type for node in wrapper.graph.node].count("EPContext") == 1
    assert {node.op_type for node in wrapper.graph.node} <= {"EPContext", "QuantizeLinear", "DequantizeLinear"}
    runner = load_runner("qnn", tmp_path, tiny_spec, 1)
    expected = np.concatenate([run_program(program)(clip) for clip in clips])
    outputs = np.concatenate([runner(clip) for clip in clips])
    assert compare_outputs(expected, outputs)[0] > least_db
    placement = runner.placement()
    assert isinstance(placement, Placement)
    assert (placement.kind, placement.fallback_ops) == ("measured", 0)
    assert placement.crossing_bytes == clips[0].nbytes + 12 * 4
    assert {unit for layer in placement.layers for unit in layer.units} == {"NPU"}
    assert {"stem", "block.0", "block.2", "head"} <= {layer.name for layer in placement.layers}
    assert list(runner.layers(clips[0])) == []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Commands of the compiler that ran."""
    from edgeact.targets import qualcomm

    seen: list[Any] = []

    def run(command: Any, **how: Any) -> str:
        seen.append(command)
        return run_compiler(command, **how)

    from edgeact._vendor_compiler import run_compiler

    monkeypatch.setattr(qualcomm, "run_compiler", run)
    return seen


def test_a_binary_is_compiled_once_for_a_chip_and_never_taken_damaged(
    calls: list[Any], tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEACT_CACHE", str(tmp_path / "cache"))
    program = program_of(tiny_spec, clips)
    assert "from the cache" not in compiled(tmp_path / "a", program)[0]
    assert "when it was first compiled" in compiled(tmp_path / "b", program)[0]
    assert len(calls) == 1
    binary = (tmp_path / "a/model.context.bin").read_bytes()
    assert (tmp_path / "b/model.context.bin").read_bytes() == binary
    (kept,) = (tmp_path / "cache").rglob("model.context.bin")
    assert kept.parent.stat().st_mode & 0o077 == 0, "no other user reads it"
    kept.write_bytes(b"\0" * len(binary))
    compiled(tmp_path / "c", program)
    assert len(calls) == 2
    assert (tmp_path / "c/model.context.bin").read_bytes() != b"\0" * len(binary)
    compiled(tmp_path / "d", program, soc="SM8750")
    assert len(calls) == 3
    assert "soc_model=69" in calls[-1]
    assert "htp_arch=79" in calls[-1]


def test_chips_and_activations_that_do_not_exist() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'QCS6490'"):
        check_options("qualcomm", {"soc": "QCS6491"})
    with pytest.raises(UnknownNameError, match="did you mean 'SM8650'"):
        check_options("qualcomm", {"soc": "SM8651"})
    with pytest.raises(UnknownNameError, match="unknown soc of target 'qualcomm' 57: allowed"):
        check_options("qualcomm", {"soc": 57})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="does not export fp16 with activations int16"):
        check_options("qualcomm", {"activations": "int16"}, "fp16")
    for soc in ("QCM6490", "QCS6490"):
        with pytest.raises(InputError, match="takes no float16"):
            check_options("qualcomm", {"soc": soc}, "fp16")


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgeact\[qualcomm\]'"):
        TARGET.compile(None, tmp_path, Request("int8", check_options("qualcomm", {})))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgeact\[qualcomm\]'"):
        qnn.open_session(tmp_path / "model.onnx", {}, threads=1)


@pytest.mark.parametrize("form", ["unrolled", "folded"])
def test_an_op_that_htp_refuses_is_forecast_and_stops_the_compiler(
    form: str, tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path
) -> None:
    found = forecast(Erf(), target="qualcomm", spec=tiny_spec, form=form)
    assert [layer.op for layer in found.layers if layer.support == "cannot run"] == ["erf"]
    assert not found.runs
    program = lower_and_prove(behind_uint8(fold(Erf().eval(), tiny_spec), tiny_spec), form, clips[0])
    with pytest.raises(ToolchainError, match="QNN could not compile this network: HTP does not take Erf 'erf") as told:
        compiled(tmp_path, program, "fp16")
    Path(str(told.value).rpartition("its log: ")[2]).unlink()  # it exists
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx"}


@pytest.mark.parametrize("form", ["unrolled", "folded"])
def test_a_network_that_is_forecast_whole_is_whole(
    form: str, tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path
) -> None:
    found = forecast(Residual(), target="qualcomm", spec=tiny_spec, form=form)
    assert found.runs
    assert found.macs("native", "lowered") == found.macs()
    compiled(tmp_path, program_of(tiny_spec, clips, form=form))
    assert read_placement(tmp_path).fallback_ops == 0


def test_an_op_of_several_results_is_forecast(tiny_spec: ClipSpec) -> None:
    model = nn.Sequential(nn.Conv3d(3, 8, 1), nn.GroupNorm(2, 8), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.GELU())
    found = forecast(model, target="qualcomm", spec=tiny_spec, options={"soc": "QCS6490"})
    assert "takes no float16 for QCS6490" in " ".join(found.notes)
    refused = {(layer.name, layer.op) for layer in found.layers if layer.support == "cannot run"}
    assert refused == {("4", "gelu")}


def test_pooling_in_3d_is_refused(tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv3d(3, 8, 1), nn.MaxPool3d(2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 12))
    found = forecast(model, target="qualcomm", spec=tiny_spec, form="volumetric")
    (refused,) = (layer for layer in found.layers if layer.support == "cannot run")
    assert (refused.name, refused.op) == ("1", "max_pool3d")
    assert "3-D pooling" in refused.reason
    program = behind_uint8(calibrated(model, clips, tiny_spec, AFFINE), tiny_spec)
    with pytest.raises(ToolchainError, match=r"MaxPool '1/max_pool3d\w*' of layer '1': .*PoolMax3d"):
        compiled(tmp_path, program)


def test_a_binary_that_computes_something_else_is_refused(
    tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(tmp_path / "sound", program_of(tiny_spec, clips))
    provider = {"soc_model": "57", "htp_arch": "75"}
    (tmp_path / "out").mkdir()
    with pytest.raises(ToolchainError, match=r"is \d+\.\d dB from the graph .* QNN compiled something else"):
        _qnn_compiler.compile_context(tmp_path / "sound/model.onnx", tmp_path / "out", 500.0, provider)
    runs: Iterator[Any] = iter([np.ones((1, 12), np.float32), np.ones((1, 12)), np.full((1, 12), 2, np.float32)])
    monkeypatch.setattr(_qnn_compiler, "_run", lambda session, clip: next(runs))
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(ToolchainError, match="other logits than the graph that it was written from"):
        _qnn_compiler.compile_context(tmp_path / "sound/model.onnx", tmp_path / "out", 10.0, provider)


@pytest.mark.parametrize(("logits", "is_sound"), [([1.0, 2.0], True), ([0.0, 0.0], False), ([np.nan, 1.0], False)])
def test_logits_that_say_nothing(logits: list[float], is_sound: bool) -> None:
    class Session:
        def get_inputs(self) -> list[Any]:
            return [type("Input", (), {"name": "clip"})]

        def run(self, *_: Any) -> list[Any]:
            return [np.array([logits], np.float32)]

    if is_sound:
        assert _qnn_compiler._run(Session(), np.zeros(1, np.uint8)).shape == (1, 2)
    else:
        with pytest.raises(ToolchainError, match="not finite, or all zero"):
            _qnn_compiler._run(Session(), np.zeros(1, np.uint8))


def test_a_network_in_two_parts_is_refused(tmp_path: Path) -> None:
    parts = [onnx.helper.make_node("EPContext", ["clip"], ["x"]), onnx.helper.make_node("Erf", ["x"], ["y"], name="a")]
    graph = onnx.helper.make_graph(parts, "g", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "written.onnx")
    with pytest.raises(ToolchainError, match="does not compile the network as one: a"):
        _qnn_compiler._name_files(tmp_path / "written.onnx", tmp_path)


LOG = """
[V:] LogNodeSupport] Validation FAILED for 3 nodes in OrtNodeUnit (MaxPool) :
\tOperator type: MaxPool Node name: layer1.pool/max_pool3d Node index: 27
\tREASON : QNN NPU does not support PoolMax3d!

[E:] Unsupported nodes in QNN EP: { name: layer1.pool/max_pool3d, type: MaxPool }{ name: x, type: Erf }
"""
STOPPED = "This session contains nodes on the CPU EP, but fallback to CPU EP has been explicitly disabled by the user."


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            LOG + STOPPED,
            "HTP does not take MaxPool 'layer1.pool/max_pool3d' of layer 'layer1.pool': QNN NPU does not support "
            "PoolMax3d!",
        ),
        ("Unsupported nodes in QNN EP: { name: erf, type: Erf }\n" + STOPPED, "HTP does not take Erf 'erf'"),
        (LOG + "Failed to finalize QNN graph. Code: 1002", "Failed to finalize QNN graph. Code: 1002"),
        ("", "it says nothing"),
    ],
)
def test_the_compilers_reason(said: str, expected: str) -> None:
    assert _qnn_compiler.reason(said) == expected


def test_the_compilers_process_says_why_it_failed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    assert _qnn_compiler.main(str(tmp_path / "model.onnx"), str(tmp_path), "20", "soc_model=57", "htp_arch=75") == 1
    assert "QNN cannot load" in capfd.readouterr().out
    assert not (tmp_path / "checked.json").exists()


def test_a_binary_that_cannot_be_loaded_or_run(tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path) -> None:
    compiled(tmp_path, program_of(tiny_spec, clips))
    runner = load_runner("qnn", tmp_path, tiny_spec, 1)
    with pytest.raises(ToolchainError, match="QNN cannot run this model"):
        runner(clips[0][:, :1])
    (tmp_path / "model.context.bin").write_bytes(b"nonsense")
    with pytest.raises(ToolchainError, match="QNN cannot load"):
        load_runner("qnn", tmp_path, tiny_spec, 1)


def test_what_the_emulator_prints_is_no_output_of_the_caller(
    tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path
) -> None:
    compiled(tmp_path, program_of(tiny_spec, clips))
    code = (
        "import sys; from pathlib import Path; from edgeact.runtime.qnn import Runner; "
        "Runner(Path(sys.argv[1]), (), 1); print('mine')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "mine\n"


def test_a_layer_in_float_in_an_int8_network_is_told(tiny_spec: ClipSpec, clips: list[Any]) -> None:
    model = to_onnx(program_of(tiny_spec, clips, form="folded"), "int8")
    for_htp(model, "int8")
    assert not any(op.fallback for op in placed(model))
    head = next(node for node in model.graph.node if node.op_type == "Gemm")
    head.input[1] = "weights_in_float"
    (fallen,) = Placement.of(placed(model), "measured").fallback
    assert fallen.startswith(head.name)
    assert fallen.endswith(IN_FLOAT)
    assert not any(op.fallback for op in placed(to_onnx(program_of(tiny_spec, clips, "fp16"), "fp16")))


def test_ops_are_refused_by_name_and_domain() -> None:
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"], "known"), onnx.helper.make_node("Relu", ["y"], ["z"], "own")]
    nodes[1].domain = "my.domain"
    value = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xz"]
    graph = onnx.helper.make_graph(nodes, "g", value[:1], value[1:])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("my.domain", 1)]
    assert list(refused_nodes(onnx.helper.make_model(graph, opset_imports=opsets))) == ["own"]


@pytest.mark.parametrize(("machine", "expected"), [("x86_64", 64), ("AMD64", 64), ("aarch64", None)])
def test_only_an_emulator_is_judged_by_a_sample(
    machine: str, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert sample_of("qnn") == expected
    assert sample_of("onnxruntime") is None


def test_an_export_is_judged_by_a_sample_and_its_time_is_not_measured(
    videos: Path, tiny_spec: ClipSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qnn, "_SAMPLE", 5)  # fewer than there are classes: one clip of each is taken
    gates = Gates(min_sqnr_db=10, min_agreement=0, max_drop_pt=100)  # untrained weights
    settings: dict[str, Any] = {"data": videos, "rounds": 1, "gates": gates, "precision": "fp16", "threads": 1}
    bundle = edgeact.export(Residual(), target="qualcomm", spec=tiny_spec, out=tmp_path, **settings)
    report = bundle.report()
    assert report.held, report.failures
    assert isinstance(report.numerics, Numerics)
    assert report.numerics.rungs[-1].name == "artifact"
    assert len(bundle.reference().ids) == 12
    data = bundle.manifest["facts"]["data"]
    assert (data["clips"], data["sampled_from"]) == (12, 24)
    assert any("a sample of 12 of 24 clips" in note for note in report.notes)
    assert any(note.startswith("emulated: QNN's x86 library") for note in report.notes)
    assert isinstance(report.latency, NotMeasured)
    assert report.latency.not_measured.startswith("emulated: the device alone tells")
    again = edgeact.validate(bundle, data=videos, rounds=1, minutes=0.01)
    assert again.held, again.failures
    assert any(note.startswith("emulated: QNN's x86 library") for note in again.notes)
    assert "the bundle's evaluation set is a sample: 12 of 24 clips" in again.notes
    for time in (again.latency, again.sustained):
        assert isinstance(time, NotMeasured)
        assert time.not_measured.startswith("emulated:")
    strict = edgeact.validate(bundle, data=videos, rounds=1, gates=dataclasses.replace(gates, require_all=True))
    assert [failure.partition(":")[0] for failure in strict.failures] == ["latency"], "what is emulated passes no gate"
    assert json.loads((bundle.path / "manifest.json").read_text())["options"]["soc"] == "SM8650"


def test_layers_in_float_between_int8_ones_are_compiled_too(
    tiny_spec: ClipSpec, clips: list[Any], tmp_path: Path
) -> None:
    with quiet_torchao():
        from edgeact.quantize.convert import quantize
        from edgeact.quantize.ranges import observe
    graph = fold(Residual().eval(), tiny_spec)
    with quiet_torchao():
        ranges = observe(graph, clips, tiny_spec, AFFINE)["mse"]
        partly = quantize(graph, ranges, AFFINE, keep_float=["conv3d", "conv3d_2"])
    program = lower_and_prove(behind_uint8(partly, tiny_spec), "unrolled", clips[0])
    compiled(tmp_path, program)
    runner = load_runner("qnn", tmp_path, tiny_spec, 1)
    expected, given = (np.concatenate([run(clip) for clip in clips]) for run in (run_program(program), runner))
    assert compare_outputs(expected, given)[0] > 35
    assert any(kernel.endswith(FLOAT) for kernel in read_placement(tmp_path).kernels)
    fallback = read_placement(tmp_path).fallback
    assert {name.partition("/")[0] for name in fallback} >= {"stem", "block.2"}
    assert all(op.endswith(IN_FLOAT) for op in fallback)
