"""LiteRT's NPUs: the rules of their compilers against a file, a forecast against it, and a compiler with an SDK."""

import importlib
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from int8_networks import calibrated
from torch import Tensor, nn

from edgeact._capture import behind_uint8, lower_and_prove
from edgeact._vendor_compiler import Compilation
from edgeact.clip import ClipSpec
from edgeact.errors import InputError, MissingDependencyError, ToolchainError, UnknownNameError
from edgeact.forecast import forecast
from edgeact.placement import read_placement
from edgeact.runtime import load_runner
from edgeact.targets import Request, _litert_aot, check_options, get_target, litert
from edgeact.targets._litert_npu_rules import NPUS, estimate, refused

SPEC = ClipSpec(frames=2, short_side=16, crop_height=16, crop_width=16)


class Decaying(nn.Module):
    """A network whose EXP MediaTek's compiler leaves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.decay, self.head = nn.Conv3d(3, 8, 3, 1, 1), Exp(), nn.Linear(8, 5)

    def forward(self, clip: Tensor) -> Tensor:
        logits: Tensor = self.head(self.decay(self.stem(clip).relu()).mean((2, 3, 4)))
        return logits


class Exp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (-x).exp()


def compile_for(
    npu: str, folder: Path, soc: str = "none", how: Compilation | None = None, form: str = "unrolled"
) -> tuple[str, ...]:
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (1, *SPEC.clip_shape), dtype=np.uint8) for _ in range(2)]
    target = get_target("litert")
    network = calibrated(Decaying(), clips, SPEC, target.scheme)  # type: ignore[arg-type]
    program = lower_and_prove(behind_uint8(network, SPEC), form, clips[0])
    options = check_options("litert", {"npu": npu, "soc": soc}, "int8")
    return target.compile(program, folder, Request("int8", options, how or Compilation()))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("mediatek")
    return folder, compile_for("mediatek", folder)


def test_the_file_is_held_against_the_rules(compiled: tuple[Path, tuple[str, ...]]) -> None:
    folder, told = compiled
    assert "compiled for no chip: that needs the vendor's SDK (--sdk)" in told[0]
    assert told[1] == "mediatek: no rule says whether it takes what is in float32: 2 MUL, 2 EXP"
    assert "not of the NPU" in told[2]
    placement = load_runner("litert", folder, SPEC, 1).placement()
    assert placement == read_placement(folder) == estimate(folder / "model.tflite", "mediatek")
    assert placement.kind == "estimated"
    left = {layer.name for layer in placement.layers if layer.fallback_ops}
    assert left == {"decay"}
    assert all("MediaTek_Neuro_Compiler.md" in op for op in placement.fallback)
    assert {layer.name for layer in placement.layers if set(layer.units) == {"NPU"}} >= {"stem", "head"}
    assert estimate(folder / "model.tflite", "qualcomm").fallback_ops == 0
    clip_and_logits = SPEC.frames * 16 * 16 * 3 + 5 * 4
    assert estimate(folder / "model.tflite", "google-tensor").crossing_bytes == clip_and_logits
    maps = 2 * SPEC.frames * 8 * 16 * 16 * 4
    assert placement.crossing_bytes == clip_and_logits + maps


def test_weights_must_have_a_scale_for_each_channel(compiled: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    from ai_edge_litert.tools import flatbuffer_utils

    for number, change in enumerate(({"scale": [0.1]}, {"zeroPoint": [3] * 8})):
        model = flatbuffer_utils.read_model(str(compiled[0] / "model.tflite"))
        graph = model.subgraphs[0]
        kinds = [flatbuffer_utils.opcode_to_name(model, op.opcodeIndex) for op in graph.operators]
        weights = graph.tensors[graph.operators[kinds.index("CONV_2D")].inputs[1]]
        vars(weights.quantization).update(change)
        flatbuffer_utils.write_model(model, str(tmp_path / f"{number}.tflite"))
        (left,) = estimate(tmp_path / f"{number}.tflite", "qualcomm").fallback
        assert "CONV_2D: its weights are not int8, symmetric and with a scale for each channel" in left
        assert "8-bit quantization specification, CONV_2D" in left


def test_a_batch_that_holds_time_is_told(tmp_path: Path) -> None:
    told = compile_for("qualcomm", tmp_path, form="folded")
    (batch,) = [each for each in told if "batch" in each]
    assert batch.startswith(
        "qualcomm: no rule says whether it takes what is of a batch above 1, which holds time (--form"
    )
    assert "CONV_2D" in batch


@pytest.mark.parametrize("npu", list(NPUS))
def test_the_forecast_is_what_the_rules_say_of_the_file(npu: str, compiled: tuple[Path, tuple[str, ...]]) -> None:
    found = forecast(Decaying().eval(), target="litert", spec=SPEC, options={"npu": npu})
    assert any(NPUS[npu].source in note for note in found.notes)
    falling = {layer.name for layer in found.layers if layer.support == "falls back"}
    placement = estimate(compiled[0] / "model.tflite", npu)
    assert falling == {layer.name for layer in placement.layers if layer.fallback_ops}


@pytest.mark.parametrize(
    ("npu", "op", "shape", "reason"),
    [
        ("google-tensor", "CONV_3D", (1, 2, 8, 8, 3), "kUnSupportedOps"),
        ("google-tensor", "CUSTOM", (1, 8), "not among the ops of its compiler"),
        ("mediatek", "CONV_2D", (1, 2, 8, 8, 3), "rank 5, and the highest is 4"),
        ("mediatek", "CONV_2D", (-1, 8, 8, 3), "a size that is not fixed"),
        ("qualcomm", "FAKE_QUANT", (1, 8), "Qualcomm_QNN_Compiler.md"),
        ("qualcomm", "CONV_2D", (1, 8, 8, 3), ""),
    ],
)
def test_the_rules(npu: str, op: str, shape: tuple[int, ...], reason: str) -> None:
    told = refused(npu, op, [shape])
    assert (reason in told) if reason else not told


@pytest.mark.parametrize(("npu", "integers"), [("none", False), *((npu, True) for npu in NPUS)])
def test_npus_have_integers_alone(npu: str, integers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*_: Any, integers: bool) -> None:
        raise ToolchainError(f"integers alone: {integers}")

    monkeypatch.setattr(litert, "convert", convert)
    with pytest.raises(ToolchainError, match=f"integers alone: {integers}"):
        get_target("litert").compile(None, tmp_path, Request("int8", check_options("litert", {"npu": npu}, "int8")))


@pytest.mark.parametrize(("npu", "module"), [(npu, npu.replace("-", "_")) for npu in NPUS])
def test_the_chips_are_those_of_the_compiler(npu: str, module: str) -> None:
    known = importlib.import_module(f"ai_edge_litert.aot.vendors.{module}.target").SocModel
    assert set(NPUS[npu].socs) == {chip.value for chip in known} - {"ALL"}


def test_what_does_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown npu of target 'litert' 'qualcom': did you mean 'qualcomm'"):
        check_options("litert", {"npu": "qualcom"})
    with pytest.raises(InputError, match=r"does not export fp16 with npu mediatek: .* --precision int8"):
        check_options("litert", {"npu": "mediatek"}, "fp16")
    with pytest.raises(InputError, match=r"--sdk is of an NPU on target 'litert': give --npu, one of google-tensor"):
        _litert_aot.check("none", "none", tmp_path)
    with pytest.raises(InputError, match=r"soc SM8650: a chip is of an NPU: give --npu, one of google-tensor"):
        check_options("litert", {"soc": "SM8650"})
    with pytest.raises(InputError, match=r"SM8650 is of another vendor than mediatek, which has MT6853"):
        check_options("litert", {"npu": "mediatek", "soc": "SM8650"})
    with pytest.raises(InputError, match=r"--soc SM8650 .* needs the vendor's SDK: give --sdk too"):
        _litert_aot.check("qualcomm", "SM8650", None)
    with pytest.raises(InputError, match=r"--sdk compiles for one chip: give --soc, one of SA8255"):
        _litert_aot.check("qualcomm", "none", tmp_path)
    with pytest.raises(InputError, match=r"target 'coreml' uses no vendor's SDK: leave --sdk out"):
        get_target("coreml").check_sdk({}, tmp_path)
    get_target("coreml").check_sdk({}, None)
    with pytest.raises(InputError, match=r"--sdk is of an NPU"):
        get_target("litert").check_sdk(check_options("litert", {}), tmp_path)
    with pytest.raises(InputError, match=r"holds no libQnnHtp\.so"):
        _litert_aot.check("qualcomm", "SM8650", tmp_path)


COMPILER = """#!/bin/sh
# Stands in for LiteRT's compiler: tells how it was called, and writes what it is asked for.
echo "$@" "LD_LIBRARY_PATH=$LD_LIBRARY_PATH" > "$(dirname "$0")/called"
for argument in "$@"; do
  case "$argument" in
    --o=*) out="${argument#--o=}";;
    --model=*) model="${argument#--model=}";;
  esac
done
case "$(cat "$(dirname "$0")/does")" in
  fails) echo "INFO: reading"; echo "ERROR: [plugin.cc:12] Failed to load libQnnHtp.so"; exit 1;;
  crashes) kill -SEGV $$;;
  hangs) sleep 60;;
  nothing) exit 0;;
  copies) cp "$model" "$out";;
  compiles) cp "$(dirname "$0")/compiled" "$out";;
esac
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the package of LiteRT; what it does stands in `tools/does`."""
    package = tmp_path / "ai_edge_litert"
    (package / "tools").mkdir(parents=True)
    program = package / "tools" / "apply_plugin_main"
    program.write_text(COMPILER)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(_litert_aot.resources, "files", lambda name: package)
    return package / "tools"


@pytest.fixture
def sdk(tmp_path: Path) -> Path:
    for place in ("aarch64-android", "x86_64-linux-clang"):
        (tmp_path / "sdk" / "lib" / place).mkdir(parents=True)
        (tmp_path / "sdk" / "lib" / place / "libQnnHtp.so").touch()
    return tmp_path / "sdk"


def without_the_first_convolution(model: Path, out: Path) -> None:
    """What a compiler makes of `model` that took a convolution: its own op in its place."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    read = flatbuffer_utils.read_model(str(model))
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM, schema.BuiltinOperator.CUSTOM
    code.customCode = b"DISPATCH_OP"
    read.operatorCodes.append(code)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    op = next(
        op for op in read.subgraphs[0].operators if names[read.operatorCodes[op.opcodeIndex].builtinCode] == "CONV_2D"
    )
    op.opcodeIndex, op.builtinOptions, op.builtinOptionsType = len(read.operatorCodes) - 1, None, 0
    flatbuffer_utils.write_model(read, str(out))


def test_an_sdk_compiles_for_its_chip(
    compiled: tuple[Path, tuple[str, ...]], compiler: Path, sdk: Path, tmp_path: Path
) -> None:
    model, out = compiled[0] / "model.tflite", tmp_path / "out.tflite"
    (compiler / "does").write_text("compiles")
    without_the_first_convolution(model, compiler / "compiled")
    placement = _litert_aot.compile_for(model, out, "qualcomm", "SM8650", Compilation(sdk=sdk))
    assert placement.kind == "measured"
    assert placement.accelerated_ops == placement.kernels["NPU CONV_2D"] == 1
    assert placement.fallback_ops > 1
    assert any("CONV_2D, which the compiler left" in op for op in placement.fallback)
    called = (compiler / "called").read_text()
    assert "--soc_manufacturer=Qualcomm --soc_model=SM8650" in called
    assert f"LD_LIBRARY_PATH={sdk / 'lib' / 'x86_64-linux-clang'}{os.pathsep}" in called
    (sdk / "libneuron_adapter.so").touch()
    _litert_aot.compile_for(model, out, "mediatek", "MT6993", Compilation(sdk=sdk))
    assert "--soc_model=mt6993 --mediatek_sdk_version_type=version9" in (compiler / "called").read_text()


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("fails", r"could not compile this network: Failed to load libQnnHtp\.so; its log: "),
        ("crashes", r"LiteRT for qualcomm crashed \(SIGSEGV\) on this network; its log: "),
        ("hangs", r"was stopped after 1 s, the time limit"),
        ("nothing", r"ended well and wrote no model: it says nothing"),
        ("copies", r"took no op of this network for SM8650"),
    ],
)
def test_a_compiler_that_fails(
    does: str, message: str, compiled: tuple[Path, tuple[str, ...]], compiler: Path, sdk: Path, tmp_path: Path
) -> None:
    (compiler / "does").write_text(does)
    how = Compilation(sdk=sdk, time_limit_s=1 if does == "hangs" else 60)
    with pytest.raises(ToolchainError, match=message):
        _litert_aot.compile_for(compiled[0] / "model.tflite", tmp_path / "out.tflite", "qualcomm", "SM8650", how)


def test_a_litert_without_the_compiler(sdk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_litert_aot.resources, "files", lambda name: tmp_path)
    with pytest.raises(MissingDependencyError, match="LiteRT's compiler for NPUs needs"):
        _litert_aot.compile_for(tmp_path, tmp_path, "qualcomm", "SM8650", Compilation(sdk=sdk))


def test_the_compiler_of_litert_and_a_folder_that_is_no_sdk(
    compiled: tuple[Path, tuple[str, ...]], sdk: Path, tmp_path: Path
) -> None:
    """LiteRT's own program with an empty library: it fails in its own words, nothing is written, nothing downloads."""
    out: Any = tmp_path / "out.tflite"
    with pytest.raises(ToolchainError, match=r"could not compile this network: Could not load .*libQnn"):
        _litert_aot.compile_for(compiled[0] / "model.tflite", out, "qualcomm", "SM8650", Compilation(sdk=sdk))
