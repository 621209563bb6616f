"""`edgeact compile`, with engines that need no compiler (tests/test_gpu.py compiles real ones)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engines import uncompiled

import edgeact
from edgeact.compile import compile_bundle
from edgeact.errors import EngineError, InputError, ToolchainError
from edgeact.parity import Gates
from edgeact.runtime import aotinductor

QUICK = ("--threads", "1", "--rounds", "1")
Edgeact = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def exported(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny untrained network."""
    folder = tmp_path_factory.mktemp("gpu")
    gates = Gates(min_sqnr_db=60, min_agreement=0, max_drop_pt=100)
    spec = edgeact.ClipSpec(frames=4, frame_stride=2, short_side=36, crop_height=32, crop_width=32)
    model = edgeact.create_model("ir_csn_26", num_classes=12, width=0.125)
    with pytest.MonkeyPatch.context() as patch:
        uncompiled(patch)
        patch.setenv("EDGEACT_CACHE", str(folder / "cache"))
        settings = {"clips": 12, "threads": 1, "rounds": 1, "gates": gates, "name": "tiny"}
        return edgeact.export(model, target="gpu", spec=spec, data=videos, out=folder, **settings).path  # type: ignore[arg-type]


@pytest.fixture
def bundle(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle on another machine, whose cache is empty."""
    uncompiled(monkeypatch)
    monkeypatch.setenv("EDGEACT_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(exported, tmp_path / "tiny"))


def engines(tmp_path: Path) -> list[Path]:
    return [file.parent for file in (tmp_path / "cache" / "engines").rglob("stamp.json")]


def test_a_bundle_is_compiled_and_then_runs(bundle: Path, tmp_path: Path, run: Edgeact) -> None:
    status, out, err = run("validate", bundle, *QUICK, "--quiet")
    assert (status, out) == (2, "")
    missing = "error: this bundle runs from an engine, which is not compiled on this machine yet"
    assert err == f"{missing}: run `edgeact compile {bundle}`\n"
    status, out, err = run("compile", bundle, *QUICK)
    assert status == 0, err
    assert err == f"compiling {bundle} for this machine: this can take minutes\n"
    (engine,) = engines(tmp_path)
    assert out.startswith("✓ held\n")
    rows = dict(line.strip().split("  ", 1) for line in out.splitlines()[1:] if "  " in line.strip())
    assert rows["engine"].strip() == str(engine)
    assert rows["torch"].strip() == torch.__version__
    assert rows["aotinductor"].strip().startswith("chosen, ")
    assert "4 golden clips" in rows["SQNR"]
    assert f"aotinductor {torch.__version__.partition('+')[0]}, cpu; 1 threads" in rows["latency"]
    assert run("validate", bundle, *QUICK, "--quiet")[0] == 0
    video = next((bundle / "golden").glob("*.mp4"))
    assert run("run", bundle, video, "--threads", "1", "--json")[0] == 0


def test_it_compiles_once_unless_forced(bundle: Path, run: Edgeact, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = aotinductor.build
    monkeypatch.setattr(aotinductor, "build", lambda *of: (built.append(of), build(*of))[1])
    for arguments, times in (((), 1), ((), 1), (("--force",), 2)):
        status, out, err = run("compile", bundle, *QUICK, "--json", "--quiet", *arguments)
        assert (status, err) == (0, "")
        found = json.loads(out)
        assert len(built) == times
    assert found["held"]
    assert found["numerics"]["sqnr_db"] > 100
    assert found["latency"]["artifact_ms"] > 0
    assert found["stamp"]["built"]["chosen"] == "aotinductor"
    assert Path(found["engine"]).is_dir()


def test_an_engine_that_falls_short_is_removed(
    bundle: Path, tmp_path: Path, run: Edgeact, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("compile", bundle, *QUICK, "--quiet")
    assert len(engines(tmp_path)) == 1
    uncompiled(monkeypatch, error=1e-2)
    status, out, _ = run("compile", bundle, *QUICK, "--quiet")
    assert status == 1
    assert out.startswith("✗ fell short, the engine was removed\n  ✗ numerics: SQNR ")
    assert not engines(tmp_path)
    with pytest.raises(EngineError, match="not compiled on this machine yet"):
        edgeact.load(bundle)


def test_an_engine_that_does_not_run_is_removed(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ToolchainError("out of memory")

    monkeypatch.setattr(aotinductor, "load_candidate", fail)
    with pytest.raises(ToolchainError, match="out of memory"):
        compile_bundle(bundle, threads=1, rounds=1)
    assert not engines(tmp_path)


@pytest.mark.parametrize("step", ["ladder", "judge"])
def test_an_interrupt_before_the_judgement_leaves_no_engine(
    step: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        assert engines(tmp_path)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"edgeact.compile.{step}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compile_bundle(bundle, threads=1, rounds=1)
    assert not engines(tmp_path)


def test_what_cannot_be_compiled(bundle: Path, videos: Path, tmp_path: Path, run: Edgeact) -> None:
    with pytest.raises(InputError, match="rounds is 0: latency needs at least 1"):
        compile_bundle(bundle, rounds=0)
    status, out, err = run("compile", tmp_path / "none")
    assert (status, out) == (2, "")
    assert "error: " in err


def test_a_bundle_whose_runtime_needs_no_compiling(bundle: Path, run: Edgeact) -> None:
    from edgeact._manifest import manifest_digest

    manifest = json.loads((bundle / "manifest.json").read_text()) | {"runtime": "openvino"}
    manifest["digest"] = manifest_digest(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    status, out, err = run("compile", bundle, "--quiet")
    assert (status, out) == (2, "")
    message = f"{bundle} needs no compiling: openvino runs its artifact as it is; `edgeact validate {bundle}` judges it"
    assert err == f"error: {message} here\n"
