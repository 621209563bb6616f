"""The pipeline end to end: export, validate, run, on small networks and real (synthetic) video files."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeact
from edgeact.accuracy import Accuracy
from edgeact.clip import ClipSpec, normalize
from edgeact.errors import BundleError, InputError, MissingDependencyError, ToolchainError, UnknownNameError
from edgeact.latency import Latency
from edgeact.measure import measure
from edgeact.models import list_models, options_for_spec
from edgeact.numerics import Numerics
from edgeact.parity import Gates, NotMeasured
from edgeact.placement import Placement
from edgeact.results import write_results
from edgeact.runtime import needs_engine
from edgeact.runtime._memory import peak_memory_mb
from edgeact.targets import Request, check_form, check_precision, get_target, list_targets
from edgeact.validate import judge_results


def tiny(name: str, spec: ClipSpec, classes: int = 12) -> nn.Module:
    torch.manual_seed(0)
    model = edgeact.create_model(name, num_classes=classes, width=0.125, **options_for_spec(name, spec))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model


@pytest.fixture(scope="module")
def bundle(videos: Path, tiny_spec: ClipSpec, tmp_path_factory: pytest.TempPathFactory) -> edgeact.Bundle:
    out = tmp_path_factory.mktemp("bundles")
    model = tiny("ir_csn_26", tiny_spec)
    return edgeact.export(
        model, target="openvino", spec=tiny_spec, data=videos, out=out, name="csn", threads=1, rounds=3
    )


SHALLOW = {"c3d", "ir_csn_26", "ip_csn_50", "mict_resnet_18", "resnet3d_18"}  # each family, the quickest of it
SMALL_CLIPS = {"frames": 16, "frame_stride": 1, "short_side": 48, "crop_height": 48, "crop_width": 48}


def every_case() -> list[Any]:
    """Every model on every target in every precision; the quick ones always, the others by `make test-all`."""
    cases = []
    for target in list_targets():
        for precision in get_target(target).precisions:
            for name in list_models():
                lowered = get_target(target).forms[0] != "volumetric"  # minutes to convert
                compiled = needs_engine(get_target(target).runtime)  # test_gpu compiles a small network
                quick = not lowered and not compiled and name in (SHALLOW if precision == "fp32" else {"ir_csn_26"})
                marks = [] if quick else [pytest.mark.slow]
                cases.append(pytest.param(target, precision, name, marks=marks))
    return cases


@pytest.mark.parametrize(("target", "precision", "name"), every_case())
def test_every_model_on_every_target(name: str, precision: str, target: str, videos: Path, tmp_path: Path) -> None:
    spec = ClipSpec(**(SMALL_CLIPS | {"frames": 4} if name == "ir_csn_26" else SMALL_CLIPS))  # type: ignore[arg-type]
    gates = dataclasses.replace(Gates.defaults(precision), min_agreement=0, max_drop_pt=100)  # untrained weights
    bundle = edgeact.export(
        tiny(name, spec),
        target=target,
        precision=precision,
        spec=spec,
        data=videos,
        out=tmp_path,
        clips=12,
        threads=1,
        rounds=1,
        gates=gates,
    )
    report = bundle.report()
    assert report.held, report.failures
    assert isinstance(report.numerics, Numerics)
    rungs = ["folded"] + ["quantized"] * (precision == "int8")
    rungs += ["lowered"] * (get_target(target).forms[0] != "volumetric")
    assert [rung.name for rung in report.numerics.rungs] == [*rungs, "artifact"]
    if target == "gpu" and isinstance(report.placement, NotMeasured):  # ONNX Runtime was the faster one here
        assert "does not tell which kernels it runs" in report.placement.not_measured
        return
    assert isinstance(report.placement, Placement)
    assert report.placement.fallback_ops == 0
    assert report.placement.accelerated_ops > 10 or name == "c3d"


def test_what_a_bundle_holds(bundle: edgeact.Bundle, videos: Path, tiny_spec: ClipSpec) -> None:
    files = {file.relative_to(bundle.path).as_posix() for file in bundle.path.rglob("*") if file.is_file()}
    assert {"manifest.json", "model.xml", "model.bin", "reference.npz", "report.json", "report.html"} <= files
    golden = bundle.golden()
    assert len(golden) == 4
    assert len({clip.label for clip in golden}) == 4
    reference = bundle.reference()
    assert len(reference.ids) == 24
    assert reference.artifact is not None
    np.testing.assert_allclose(reference.artifact, reference.logits, rtol=1e-3, atol=1e-4)
    model = tiny("ir_csn_26", tiny_spec).eval()
    for clip in golden:
        with torch.inference_mode():
            logits = model(torch.from_numpy(normalize(clip.frames[None], tiny_spec)))[0]
        np.testing.assert_allclose(clip.logits, logits, rtol=1e-5, atol=1e-6)
        assert clip.video.read_bytes() == (videos / clip.id).read_bytes()
    report = bundle.report()
    assert report.bundle == str(bundle.path)
    assert isinstance(report.accuracy, Accuracy)
    assert report.accuracy.n == 24
    assert isinstance(report.latency, Latency)
    assert report.latency.reference_ms is not None
    assert report.latency.peak_memory_mb is not None
    assert report.latency.peak_memory_mb > 20
    assert bundle.manifest["facts"]["held"] is report.held


def test_the_runner_takes_what_the_manifest_says_and_nothing_else(bundle: edgeact.Bundle) -> None:
    runner = edgeact.load(bundle, threads=1)
    clip = bundle.golden()[0]
    logits = runner(clip.frames[None])
    assert (logits.shape, logits.dtype) == ((1, 12), np.float32)
    again = runner(np.asfortranarray(clip.frames[None]))
    np.testing.assert_array_equal(logits, again)
    assert logits is not again
    with pytest.raises(InputError, match=r"takes a uint8 clip of shape \(1, 4, 32, 32, 3\).*found float32"):
        runner(clip.frames[None].astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"found uint8 of shape \(4, 32, 32, 3\)"):
        runner(clip.frames)


def test_validate_with_and_without_the_data(bundle: edgeact.Bundle, videos: Path, tmp_path: Path) -> None:
    gates = Gates(min_agreement=0.9, max_drop_pt=5)
    without = edgeact.validate(bundle, threads=1, rounds=2, gates=gates)
    assert without.held, without.failures
    assert without.to_dict()["accuracy"] == {"not_measured": "give --data to run the 24 clips of the evaluation set"}
    assert without.latency.reference_ms is None  # type: ignore[union-attr]
    assert any("4 golden videos give the export's frames to the bit" in note for note in without.notes)
    with_data = edgeact.validate(str(bundle.path), data=videos, threads=1, rounds=2, gates=gates)
    assert with_data.held, with_data.failures
    assert with_data.accuracy.n == 24  # type: ignore[union-attr]
    part = tmp_path / "part"
    shutil.copytree(videos, part)
    rows = (part / "split.csv").read_text().splitlines()
    dropped = next(row for row in rows if row.endswith(",test"))
    (part / "split.csv").write_text("\n".join(row for row in rows if row != dropped) + "\n")
    with pytest.raises(InputError, match=r"lacks 1 of the 24 clips of the bundle's evaluation set, first"):
        edgeact.validate(bundle, data=part)
    first, second = "left", "right"
    swapped = [row.replace(f",{first},", ",#,").replace(f",{second},", f",{first},") for row in rows]
    (part / "split.csv").write_text("\n".join(row.replace(",#,", f",{second},") for row in swapped) + "\n")
    with pytest.raises(InputError, match="differently from the bundle's evaluation set"):
        edgeact.validate(bundle, data=part)


def test_what_is_measured_here_is_judged_like_what_a_device_wrote(
    bundle: edgeact.Bundle, videos: Path, tmp_path: Path
) -> None:
    measured = measure(bundle, data=videos, threads=1, rounds=2)
    write_results(measured, tmp_path / "results.json")
    gates = Gates(min_agreement=0.9, max_drop_pt=5)
    here = judge_results(bundle, measured, gates)
    assert here.held, here.failures
    assert edgeact.validate(bundle, gates=gates, results=tmp_path / "results.json") == here
    assert edgeact.validate(bundle, gates=gates, results=measured) == here
    assert isinstance(here.accuracy, Accuracy)
    assert isinstance(here.latency, Latency)
    assert (here.accuracy.n, here.latency.rounds, here.latency.threads) == (24, 2, 1)
    assert here.latency.runtime == f"openvino {here.environment['openvino']}"
    assert here.latency.peak_memory_mb is not None
    assert here.environment["cpu"] == here.latency.device


def test_a_device_that_decodes_other_pixels_is_told(bundle: edgeact.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeact.errors import VideoError
    from edgeact.video import DecodedClip, read_clip

    module = sys.modules["edgeact.measure"]

    def brighter(levels: int) -> None:
        def decode(path: Path, spec: ClipSpec) -> DecodedClip:
            frames = read_clip(path, spec).frames.astype(np.int16) + levels
            return DecodedClip(np.clip(frames, 0, 255).astype(np.uint8), ())

        monkeypatch.setattr(module, "read_clip", decode)

    brighter(1)
    report = edgeact.validate(bundle, threads=1, rounds=1)
    assert any("differs by at most 1 of 255 levels" in note for note in report.notes)
    brighter(9)
    report = edgeact.validate(bundle, threads=1, rounds=1)
    assert not report.held
    assert "from the export's frames by 9.0 of 255 levels" in report.failures[0]

    def broken(path: Path, spec: ClipSpec) -> DecodedClip:
        raise VideoError("no decoder")

    monkeypatch.setattr(module, "read_clip", broken)
    assert "no decoder" in edgeact.validate(bundle, threads=1, rounds=1).failures[0]


def test_a_gate_that_is_missed_fails_and_keeps_the_bundle(videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    bundle = edgeact.export(
        tiny("ir_csn_26", tiny_spec),
        target="openvino",
        precision="fp16",
        spec=tiny_spec,
        data=videos,
        out=tmp_path,
        clips=12,
        threads=1,
        rounds=2,
        gates=Gates(min_sqnr_db=140, min_speedup=1e6, min_agreement=0, max_drop_pt=100),
    )
    report = bundle.report()
    assert not report.held
    assert any("SQNR" in failure and "'artifact'" in failure for failure in report.failures)
    assert any("latency" in failure for failure in report.failures)
    assert bundle.manifest["facts"]["held"] is False
    again = edgeact.validate(bundle, data=videos, threads=1, rounds=1, gates=Gates(min_sqnr_db=0))
    assert [failure for failure in again.failures if failure.startswith("export: it fell short there")], again.failures


def test_what_is_asked_is_checked_before_anything_is_written(
    videos: Path, tiny_spec: ClipSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = tiny("ir_csn_26", tiny_spec), tmp_path / "out"

    def export(**changed: object) -> None:
        arguments = {"target": "openvino", "spec": tiny_spec, "data": videos, "out": out, "threads": 1} | changed
        edgeact.export(model, **arguments)  # type: ignore[arg-type]

    with pytest.raises(UnknownNameError, match="unknown target 'openvin': did you mean 'openvino'"):
        export(target="openvin")
    with pytest.raises(UnknownNameError, match="unknown precision 'fp31': did you mean 'fp32'"):
        export(precision="fp31")
    monkeypatch.setattr(type(get_target("litert")), "precisions", ("fp32", "fp16"))
    with pytest.raises(InputError, match="target 'litert' does not export int8: allowed: fp32, fp16"):
        export(target="litert", precision="int8")
    with pytest.raises(InputError, match="rounds is 0"):
        export(rounds=0)
    with pytest.raises(InputError, match=r"a bundle cannot be named '\.\./x'"):
        export(name="../x")
    with pytest.raises(InputError, match="--clips 3 is fewer than the 12 classes"):
        export(clips=3)
    with pytest.raises(InputError, match="labels differ from the model's"):
        export(labels=["a", "b"])
    model = tiny("ir_csn_26", tiny_spec, classes=5)
    with pytest.raises(InputError, match="the model has 5 outputs, the data 12 classes"):
        export()
    model = nn.Flatten(0)
    with pytest.raises(InputError, match=r"to a tensor of shape \(12288,\), float32: it must return float32 logits"):
        export()
    assert not out.exists()


class Nan(nn.Module):
    def forward(self, clip: Tensor) -> Tensor:
        return clip.mean((1, 2, 3, 4))[:, None].expand(-1, 12) * float("nan")


class Untraceable(nn.Module):
    def forward(self, clip: Tensor) -> Tensor:
        features = clip.mean((1, 2, 3, 4))[:, None].expand(-1, 12)
        return features if clip.sum() > 0 else -features


class Unconvertible(nn.Module):
    def forward(self, clip: Tensor) -> Tensor:
        return torch.linalg.svdvals(clip[:, 0, 0, :12, :12].contiguous())


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (Nan(), InputError, r"the model's output for .*\.mp4 is not finite"),
        (Untraceable(), ToolchainError, r"torch\.export cannot capture this network: .* must not depend on the values"),
        (Unconvertible(), ToolchainError, "OpenVINO could not convert this network"),
    ],
)
def test_networks_that_cannot_be_exported(
    model: nn.Module, error: type[Exception], message: str, videos: Path, tiny_spec: ClipSpec, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        edgeact.export(model, target="openvino", spec=tiny_spec, data=videos, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_targets_say_what_they_are() -> None:
    for name in list_targets():
        target = get_target(name)
        assert target.summary
        assert set(target.forms) <= {"volumetric", "folded", "unrolled"}
        assert check_form(name, None) == target.forms[0]
        with pytest.raises(
            UnknownNameError, match=f"unknown form of target '{name}' 'unroled': did you mean 'unrolled'"
        ):
            check_form(name, "unroled")
        for precision in target.precisions:
            check_precision(name, precision)
    members = {name for name in dir(get_target("openvino")) if not name.startswith("_")}
    told = {"summary", "precisions", "forms", "scheme", "options", "runtime", "proxy", "needs", "takes_images"}
    assert members == told | {"compile", "refusals", "conflict", "check_sdk", "require_toolchain"}


def test_a_missing_runtime_names_its_extra(bundle: edgeact.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgeact\[openvino\]'"):
        edgeact.load(bundle)
    with pytest.raises(MissingDependencyError, match="exporting to openvino needs openvino"):
        get_target("openvino").compile(None, bundle.path, Request("fp32"))  # type: ignore[arg-type]


@pytest.mark.parametrize("target", list_targets())
def test_a_missing_compiler_is_told_before_anything_is_decoded(
    target: str, tiny_spec: ClipSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, extra = get_target(target).needs
    precision = get_target(target).precisions[0]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"exporting to {target} needs {package}, .*\[{extra}\]"):
        edgeact.export(nn.Flatten(), target=target, precision=precision, spec=tiny_spec, data=tmp_path / "absent")


def test_a_manifest_never_names_a_module(bundle: edgeact.Bundle) -> None:
    hostile = dataclasses.replace(bundle, manifest={**bundle.manifest, "runtime": "..os"})
    with pytest.raises(BundleError, match=r"wants the runtime '\.\.os'; this edgeact has: .*, openvino"):
        edgeact.load(hostile)


def test_a_damaged_model_is_an_error_and_not_a_crash(bundle: edgeact.Bundle, tmp_path: Path) -> None:
    from edgeact.runtime import load_runner

    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(ToolchainError, match="OpenVINO cannot load"):
        load_runner("openvino", tmp_path, bundle.spec)


def test_peak_memory_counts_the_bundle_alone(bundle: edgeact.Bundle, tmp_path: Path) -> None:
    ballast = np.ones(150_000_000)  # 1.2 GB here must not count there
    peak_mb = peak_memory_mb("openvino", bundle.path, bundle.spec, 1)
    assert ballast[-1] == 1
    assert peak_mb is not None
    assert 30 < peak_mb < 1000
    with pytest.raises(ToolchainError, match="a fresh process could not run the artifact in"):
        peak_memory_mb("openvino", tmp_path, bundle.spec, 1)


def test_stored_gates_that_are_malformed(bundle: edgeact.Bundle) -> None:
    hostile = dataclasses.replace(bundle, manifest={**bundle.manifest, "gates": {"min_sqnr": 1}})
    with pytest.raises(BundleError, match="has gates that cannot be used"):
        edgeact.validate(hostile)
    with pytest.raises(InputError, match="rounds is 0"):
        edgeact.validate(bundle, rounds=0)


def test_report_json_is_the_contract_of_the_design(bundle: edgeact.Bundle) -> None:
    report = json.loads((bundle.path / "report.json").read_text())
    assert {"bundle", "target", "model", "precision", "form", "held", "failures", "artifact"} <= report.keys()
    assert {"files", "size_mb"} <= report["artifact"].keys()
    assert {"sqnr_db", "max_abs", "cosine", "rungs"} <= report["numerics"].keys()
    wanted = {"n", "top1_reference", "top1_artifact", "drop_pt", "drop_ci95_pt", "agreement"}
    assert wanted <= report["accuracy"].keys()
    assert {"reference_ms", "artifact_ms", "speedup", "threads", "runtime"} <= report["latency"].keys()
    assert {"accelerated_ops", "fallback_ops", "fallback", "kind"} <= report["placement"].keys()
    assert json.loads(json.dumps(edgeact.Report.from_dict(report).to_dict())) == report
    with pytest.raises(InputError, match="not a report of this version of edgeact: 'numerics'"):
        edgeact.Report.from_dict({})


def test_int8_needs_clips_to_calibrate_on(videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    held_out = shutil.copytree(videos, tmp_path / "held_out")
    rows = (held_out / "split.csv").read_text().splitlines()
    (held_out / "split.csv").write_text("\n".join([rows[0], *(row for row in rows if row.endswith("test"))]) + "\n")
    model = tiny("ir_csn_26", tiny_spec)
    with pytest.raises(InputError, match=r"int8 takes clips of the training part, and .*'train' split"):
        edgeact.export(model, target="openvino", precision="int8", spec=tiny_spec, data=held_out, out=tmp_path / "out")
    readable = {}
    for sample in (held_out / row.split(",")[0] for row in rows if row.endswith("train")):
        readable[sample] = sample.read_bytes()
        sample.write_bytes(b"no video")
    (held_out / "split.csv").write_text("\n".join(rows) + "\n")
    asked: dict[str, Any] = {"target": "openvino", "precision": "int8", "spec": tiny_spec, "data": held_out}
    asked |= {"out": tmp_path / "out", "clips": 12, "threads": 1, "rounds": 1, "on_corrupt": "skip"}
    with pytest.raises(InputError, match="none of 24 videos can be used"):
        edgeact.export(model, **asked)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    for other in (path for path in readable if path.parent != sample.parent):
        other.write_bytes(readable[other])
    bundle = edgeact.export(model, **asked)
    calibrated = bundle.manifest["facts"]["quantization"]
    assert (calibrated["clips"], calibrated["classes"]) == (22, 11), "of 24 clips in 12 classes"
    (note,) = (note for note in bundle.report().notes if "ranges from 22 clips of the training part" in note)
    assert "; skipped: " in note
