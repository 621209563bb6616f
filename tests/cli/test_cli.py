"""The command line: what it prints, what it exits with, and that a mistake is one line that leaves nothing behind."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from results_samples import logits, results_fields, without, write_bundle, write_fields

import edgeact
from edgeact.checkpoint import load_checkpoint, save_checkpoint
from edgeact.cli import main
from edgeact.data import open_dataset
from edgeact.models import list_models
from edgeact.quantize.scheme import AFFINE
from edgeact.run import classify_video
from edgeact.video import write_video

SPEC = ("--frames", "4", "--stride", "2", "--short-side", "36", "--crop", "32")
TINY = ("--model", "ir_csn_26", "--option", "width=0.125")
QUICK = ("--target", "openvino", "--threads", "1", "--rounds", "1", "--quiet")
OPEN_GATES = ("--min-sqnr", "60", "--min-agreement", "0", "--max-drop", "100")
TRAIN = ("--epochs", "1", "--batch-size", "8", "--threads", "1", "--quiet")


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


Edgeact = Callable[..., Done]


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """What `main` changes in its process, put back."""
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Edgeact:
    def call(*arguments: str | Path) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return Done(stopped.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def refused(run: Edgeact) -> Callable[..., str]:
    """The one line of a refused command, on stderr and nothing on stdout."""

    def call(*arguments: str | Path) -> str:
        done = run(*arguments)
        assert (done.status, done.out) == (2, ""), done
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        return done.err

    return call


Refused = Callable[..., str]


@pytest.fixture(scope="session")
def bundle(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny untrained network, exported by the command line."""
    out = tmp_path_factory.mktemp("cli-bundles")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        main(["export", *TINY, *SPEC, *QUICK, *OPEN_GATES, "--data", str(videos), "--out", str(out), "--name", "tiny"])
    signal.signal(signal.SIGTERM, handler)
    assert stopped.value.code == 0
    return out / "tiny"


@pytest.fixture(scope="session")
def checkpoint(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("cli-checkpoint") / "tiny.safetensors"
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        main(["train", *TINY, *SPEC, *TRAIN, "--data", str(videos), "--out", str(file)])
    signal.signal(signal.SIGTERM, handler)
    assert stopped.value.code == 0
    return file


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture
def damaged(videos: Path, tmp_path: Path) -> Path:
    """The videos, of which one held-out file is rubbish."""
    folder = tmp_path / "damaged"
    shutil.copytree(videos, folder)
    rows = [row.split(",") for row in (folder / "split.csv").read_text().splitlines()]
    (folder / next(path for path, *_, split in rows if split == "test")).write_bytes(b"no video" * 100)
    return folder


def first_test_clip(videos: Path) -> Path:
    rows = [row.split(",") for row in (videos / "split.csv").read_text().splitlines()]
    return videos / next(path for path, *_, split in rows if split == "test")


# What is asked


def test_no_command_prints_the_help(run: Edgeact) -> None:
    done = run()
    assert done.status == 2
    assert "Usage: edgeact" in done.err
    done = run("--help")
    assert done.status == 0
    assert all(verb in done.out for verb in ("diff", "export", "models", "run", "targets", "train", "validate"))
    assert run("--version").out.strip() == f"edgeact, version {edgeact.__version__}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprot"], "unknown command 'exprot': did you mean 'export'?"),
        (["export", "--target", "openvin"], "unknown target 'openvin': did you mean 'openvino'?"),
        (["export", *QUICK, "--precision", "fp31"], "unknown precision 'fp31': did you mean 'fp32'?"),
        (["export", *QUICK, "--model", "ir_csn26"], "unknown model 'ir_csn26': did you mean 'ir_csn_26'?"),
        (["export"], "Missing option '--target'"),
        (["export", *QUICK, "--no-such"], "No such option"),
        (["export", *QUICK, "--clips", "0"], "--clips"),
        (["export", *QUICK, *TINY, *SPEC, "--option", "width"], "--option 'width': write it as name=value"),
        (["export", *QUICK, *TINY, *SPEC, "--option", "a b=1"], "--option 'a b=1': write it as name=value"),
        (["export", *QUICK, *TINY, *SPEC, "--option", "num_classes=3"], "the data or --num-classes say"),
        (["export", *QUICK, *TINY, *SPEC, "--option", "width=abc"], "does not take these options"),
        (["export", *QUICK, *TINY, *SPEC, "--option", "width=-1"], "width is -1: it must be a multiple from"),
        (["export", *QUICK, *TINY, *SPEC, "--option", "depth=3"], "does not take these options"),
        (["export", *QUICK, *TINY, *SPEC, "--fps", "10"], "--stride and --fps are two ways to sample one video"),
        (["export", *QUICK, *TINY, "--crop", "1x2x3"], "--crop '1x2x3': write 112 or 112x160"),
        (["export", *QUICK, *TINY, "--crop", "²"], "--crop '²': write 112 or 112x160"),
        (["export", *QUICK, *TINY, "--crop", "x32"], "--crop 'x32': write 112 or 112x160"),
        (["export", *QUICK, *TINY, "--mean", "abc"], "--mean 'abc': write three numbers, as 0.45,0.45,0.45"),
        (["export", *QUICK, *TINY, "--std", "1,2"], "ClipSpec.std is (1.0, 2.0): it must be three finite numbers"),
        (["export", *QUICK, *TINY, "--std", "0,1,1"], "every value must be positive"),
        (["export", *QUICK, *TINY, "--frames", "0"], "ClipSpec.frames is 0"),
        (["export", *QUICK, *TINY, "--fps", "nan"], "ClipSpec.sample_fps is nan"),
        (["export", *QUICK, *TINY, *SPEC, "--crop", "40x32"], "the crop must not be larger than short_side"),
        (["export", *QUICK, *TINY, *SPEC, "--min-agreement", "2"], "min_agreement is 2.0: it is a share of clips"),
        (["export", *QUICK, *TINY, *SPEC, "--min-sqnr", "nan"], "min_sqnr_db is nan"),
        (["export", *QUICK, *TINY, *SPEC, "--name", "../x"], "a bundle cannot be named '../x'"),
        (["export", *QUICK, *TINY, *SPEC, "--name", "x-failed"], "'x-failed': -failed marks those that fell short"),
        (["export", *QUICK, *TINY, *SPEC, "--num-classes", "5"], "the model has 5 outputs, the data 12 classes"),
        (["export", *QUICK, *TINY, *SPEC, "--clips", "3"], "--clips 3 is fewer than the 12 classes"),
        (["export", *QUICK, *TINY, *SPEC, "--keep-float", "2"], "--keep-float is of int8: leave it out of fp32"),
    ],
)
def test_what_cannot_be_asked(
    arguments: list[str], message: str, videos: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    known = ["--data", str(videos), "--out", str(out)] if arguments[0] == "export" and len(arguments) > 1 else []
    assert message in refused(*arguments, *known)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs is 0: it must be at least 1"),
        (["--batch-size", "1000"], "batch_size 1000 is more than the 24 training clips"),
        (["--min-scale", "2"], "min_scale"),
        (["--optimizer", "adam"], "'adam' is not one of 'adamw', 'sgd'"),
        (["--device", "warp"], "device 'warp' cannot be used"),
        (["--resume"], "--resume: there is no unfinished run at"),
        (["--train-per-class", "3"], "--train-per-class sizes the synthetic set: it goes with --data motion"),
        (["--model", "c4d"], "unknown model 'c4d': did you mean 'c3d'?"),
        (["--scheme", "affine"], "--scheme goes with --qat CHECKPOINT"),
        (["--qat", "m.safetensors", "--scheme", "affin"], "unknown scheme 'affin': did you mean 'affine'?"),
    ],
)
def test_what_cannot_be_trained(
    arguments: list[str], message: str, videos: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out" / "m.safetensors"
    assert message in refused("train", *TINY, *SPEC, *TRAIN, "--data", videos, "--out", out, *arguments)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_training_onto_a_folder(videos: Path, tmp_path: Path, refused: Refused) -> None:
    error = refused("train", *TINY, *SPEC, *TRAIN, "--data", videos, "--out", tmp_path)
    assert f"--out {tmp_path} is a folder: give the file to write" in error
    assert not list(tmp_path.iterdir())


# Data


def test_data_that_is_not_there(videos: Path, tmp_path: Path, refused: Refused) -> None:
    out, empty, hole = tmp_path / "out", tmp_path / "empty", tmp_path / "hole"
    empty.mkdir()
    shutil.copytree(next(folder for folder in videos.iterdir() if folder.is_dir()), hole / "a" / "b")
    (hole / "c").mkdir()
    for folder, message in (
        (tmp_path / "missing", f"{tmp_path / 'missing'}: no such folder"),
        (first_test_clip(videos), "is a file; give a folder"),
        (empty, f"{empty}: no class folders"),
        (hole, f"{hole / 'c'}: the class 'c' has no clips"),
    ):
        assert message in refused("export", *TINY, *SPEC, *QUICK, "--data", folder, "--out", out)
        trained = out / "m.safetensors"
        assert message in refused("train", *TINY, *SPEC, *TRAIN, "--data", folder, "--out", trained)
    assert not out.exists()


def test_a_corrupt_video_is_fatal_or_skipped(damaged: Path, tmp_path: Path, run: Edgeact, refused: Refused) -> None:
    out, bad = tmp_path / "out", first_test_clip(damaged)
    arguments = ("export", *TINY, *SPEC, *QUICK, *OPEN_GATES, "--data", damaged, "--out", out)
    assert f"{bad}: not a video that can be read" in refused(*arguments)
    assert not out.exists()
    done = run(*arguments, "--skip-corrupt", "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["accuracy"]["n"] == 23
    assert [note for note in report["notes"] if note.startswith(f"skipped: {bad}: not a video")]
    trained = tmp_path / "trained" / "m.safetensors"
    bad = open_dataset(damaged, split="val").samples[0].path
    bad.write_bytes(b"no video")
    assert f"{bad}: not a video" in refused("train", *TINY, *SPEC, *TRAIN, "--data", damaged, "--out", trained)
    assert not trained.parent.exists()


def test_validate_with_a_corrupt_video(bundle: Path, damaged: Path, run: Edgeact, refused: Refused) -> None:
    bad = first_test_clip(damaged)
    arguments = ("validate", bundle, "--data", damaged, "--threads", "1", "--rounds", "1", "--quiet")
    assert f"{bad}: not a video" in refused(*arguments)
    report = json.loads(run(*arguments, "--skip-corrupt", "--json").out)
    assert report["accuracy"]["n"] == 23
    assert [note for note in report["notes"] if note.startswith(f"skipped: {bad}: not a video")]


# Checkpoints


def test_files_that_are_no_checkpoint(videos: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    arguments = ("export", *SPEC, *QUICK, "--data", videos, "--out", out, "--checkpoint")
    rubbish, pickle = tmp_path / "rubbish.safetensors", tmp_path / "rubbish.pt"
    for file in (rubbish, pickle):
        file.write_bytes(b"\x80\x04rubbish" * 50)
    assert f"checkpoint {tmp_path / 'no.safetensors'} does not exist" in refused(
        *arguments, tmp_path / "no.safetensors"
    )
    assert f"checkpoint {tmp_path} is a folder" in refused(*arguments, tmp_path)
    assert f"{rubbish} is not a safetensors checkpoint" in refused(*arguments, rubbish)
    assert f"{rubbish} is not a safetensors checkpoint" in refused(*arguments, rubbish, "--model", "c3d")
    assert f"{pickle} holds weights alone: give --model" in refused(*arguments, pickle)
    assert f"{pickle} holds no weights that can be read safely" in refused(*arguments, pickle, "--model", "c3d")
    assert not out.exists()


def test_a_checkpoint_of_another_model(
    checkpoint: Path, videos: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ("export", *QUICK, "--data", videos, "--out", out, "--checkpoint")
    assert f"{checkpoint} holds a 'ir_csn_26', not a 'c3d': leave --model out" in refused(
        *arguments, checkpoint, "--model", "c3d"
    )
    assert f"{checkpoint} fixes the model's options ({{'width': 0.125}}): leave --option out" in refused(
        *arguments, checkpoint, "--option", "width=0.5"
    )
    assert f"{checkpoint} tells 12 classes apart: leave --num-classes out" in refused(
        *arguments, checkpoint, "--num-classes", "5"
    )
    import dataclasses

    saved = edgeact.load_checkpoint(checkpoint)
    other = tmp_path / "other.safetensors"
    edgeact.save_checkpoint(other, dataclasses.replace(saved, options={"width": 0.25}))
    assert f"{other} holds weights of another model: " in refused(*arguments, other)
    edgeact.save_checkpoint(other, dataclasses.replace(saved, model="evil:factory"))
    assert f"{other} names code of its own: allow it with --model evil:factory" in refused(*arguments, other)
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "weights.pt")
    error = refused(*arguments, tmp_path / "weights.pt", "--model", "ir_csn_26")
    assert f"{tmp_path / 'weights.pt'}: these are no weights of 'ir_csn_26'" in error
    assert not out.exists()


def test_a_checkpoint_of_other_classes(checkpoint: Path, videos: Path, tmp_path: Path, refused: Refused) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(videos, data)
    table = data / "split.csv"
    table.write_text(table.read_text().replace(",left,", ",leftwards,"))
    error = refused("export", *QUICK, "--data", data, "--out", out, "--checkpoint", checkpoint)
    assert "the model knows 'left', which the data lacks; the data has 'leftwards'" in error
    assert not out.exists()


def test_plain_weights_need_their_model(
    checkpoint: Path, videos: Path, tmp_path: Path, run: Edgeact, refused: Refused
) -> None:
    from safetensors.torch import save_file

    plain = tmp_path / "plain.safetensors"
    save_file(dict(edgeact.load_checkpoint(checkpoint).state), plain)
    arguments = ("export", *SPEC, *QUICK, *OPEN_GATES, "--data", videos, "--out", tmp_path / "out", "--clips", "12")
    assert "holds tensors but no edgeact metadata: give --model" in refused(*arguments, "--checkpoint", plain)
    assert run(*arguments, *TINY, "--checkpoint", plain).status == 0


# A network of the user's


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "cli_nets.py").write_text(
        "from torch import nn\n\n\n"
        "def pooled(num_classes, width=4):\n"
        "    layers = nn.Conv3d(3, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()\n"
        "    return nn.Sequential(*layers, nn.Linear(width, num_classes))\n\n\n"
        "def text(num_classes):\n    return 'a network'\n\n\nNUMBER = 3\n\n\n"
        "def broken(num_classes):\n    raise RuntimeError('no weights here')\n\n\n"
        "class Returns(nn.Module):\n"
        "    def __init__(self, num_classes, what):\n"
        "        super().__init__()\n        self.net, self.what = pooled(num_classes), what\n\n"
        "    def forward(self, clip):\n"
        "        logits = self.net(clip)\n"
        "        if self.what == 'data' and logits.sum() > 0:\n"
        "            return -logits\n"
        "        if self.what == 'error':\n            raise ValueError('first line\\nsecond line')\n"
        "        found = {'tuple': (logits, logits), 'vector': logits[0], 'whole': logits.int(), 'data': logits}\n"
        "        return found[self.what]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("cli_nets", None)


def test_a_users_network(project: Path, videos: Path, run: Edgeact) -> None:
    arguments = ("--model", "cli_nets:pooled", "--option", "width=6", *SPEC, *QUICK, *OPEN_GATES, "--data", videos)
    done = run("export", *arguments, "--clips", "12", "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["model"] == "cli_nets:pooled"
    assert (project / "bundles" / "pooled-openvino-fp32" / "manifest.json").is_file()
    done = run("run", Path("bundles") / "pooled-openvino-fp32", first_test_clip(videos), "--threads", "1")
    assert done.status == 0, done.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:net", "No module named 'no_such_module'; write it as package.module:factory"),
        ("cli_nets:other", "has no attribute 'other'; write it as package.module:factory"),
        ("cli_nets:NUMBER", "NUMBER is a int, not a function or class"),
        ("cli_nets:text", "cli_nets:text returned a str: it must return a torch.nn.Module"),
        ("cli_nets:broken", "--model cli_nets:broken raised RuntimeError: no weights here"),
        ("cli_nets:pooled --option depth=1", "the factory does not take ['depth', 'num_classes']"),
    ],
)
def test_factories_that_cannot_be_used(name: str, message: str, project: Path, videos: Path, refused: Refused) -> None:
    assert message in refused("export", "--model", *name.split(), *SPEC, *QUICK, "--data", videos)
    assert not (project / "bundles").exists()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("error", r"the network fails on a clip .*: ValueError: first line \(.*cli_nets\.py:30\)"),
        ("tuple", r"the network maps a clip .* to tuple: it must return float32 logits \[1, K\]"),
        ("vector", r"to a tensor of shape \(12,\), float32: it must return"),
        ("whole", r"to a tensor of shape \(1, 12\), int32: it must return"),
        ("data", r"torch\.export cannot capture this network: .*cli_nets\.py:27\); its forward must not depend on"),
    ],
)
def test_networks_that_return_no_logits(what: str, message: str, project: Path, videos: Path, refused: Refused) -> None:
    network = ("--model", "cli_nets:Returns", "--option", f"what={what}", *SPEC)
    assert re.search(message, refused("export", *network, *QUICK, "--data", videos))
    assert re.search(message, refused("check", "--target", "android", *network, "--num-classes", "12"))
    if what != "data":
        assert re.search(message, refused("train", *network, *TRAIN, "--data", videos, "--out", project / "m.st"))
    assert [file.name for file in project.iterdir() if file.suffix != ".py"] in ([], ["__pycache__"])


# int8


def test_int8_is_trained_and_exported(
    checkpoint: Path, videos: Path, tmp_path: Path, run: Edgeact, refused: Refused
) -> None:
    out, bundles = tmp_path / "int8.safetensors", tmp_path / "bundles"
    training = ("train", *TRAIN, "--calibration-clips", "12", "--data", videos)
    done = run(*training, "--qat", checkpoint, "--out", out)
    assert done.status == 0, done.err
    quantized = load_checkpoint(out).quantized
    assert quantized is not None
    assert quantized.scheme == AFFINE
    assert "was trained for int8 already" in refused(*training, "--qat", out, "--out", tmp_path / "again")

    before = checkpoint.read_bytes()
    assert "is the checkpoint of --qat" in refused(*training, "--qat", checkpoint, "--out", checkpoint)
    assert checkpoint.read_bytes() == before

    gates = ("--min-agreement", "0", "--max-drop", "100", "--clips", "12")
    export = ("export", "--checkpoint", out, *QUICK, *gates, "--precision", "int8", "--data", videos, "--out", bundles)
    assert "--observer calibrates, and the checkpoint holds the ranges" in refused(*export, "--observer", "mse")
    assert "unknown int8 layer 'conv': did you mean 'conv1'?" in refused(*export, "--keep-float", "conv")
    assert "--calibration-clips: the checkpoint holds the ranges" in refused(*export, "--calibration-clips", "9")
    assert "--keep-float 'fc,': give a number of layers, auto, or names" in refused(*export, "--keep-float", "fc,")
    assert "keep_float is -1: it is a number of layers" in refused(*export, "--keep-float", "-1")
    assert "unknown int8 layer '--5'" in refused(*export, "--keep-float=--5")
    few = ("--calibration-clips", "12", "--keep-float", "fc")
    assert "--calibration-clips: the checkpoint holds the ranges" in refused(*export, *few)
    assert not bundles.exists()
    trained = load_checkpoint(out)
    save_checkpoint(out, dataclasses.replace(trained, training={**trained.training, "best": {"epoch": -1.0}}))
    done = run(*export, "--keep-float", "fc", "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert [note for note in report["notes"] if "no epoch of --qat came closer than calibration" in note]
    assert "int8: weights and ranges from quantization-aware training" in report["notes"]
    assert "int8: in float stay, as asked, fc" in report["notes"]


# Bundles


def list_file(manifest: Path, name: str) -> None:
    """Add a file to a manifest and seal it again, as an attacker would."""
    from edgeact._manifest import manifest_digest

    fields = json.loads(manifest.read_text())
    fields["files"][name] = "0" * 64
    manifest.write_text(json.dumps(fields | {"digest": manifest_digest(fields)}))


@pytest.mark.parametrize("verb", ["validate", "run"])
def test_bundles_that_are_refused(verb: str, copy: Path, videos: Path, tmp_path: Path, refused: Refused) -> None:
    video = (first_test_clip(videos),) if verb == "run" else ()
    assert "is not a bundle: it is not a folder" in refused(verb, tmp_path / "nothing", *video)
    assert "is not a bundle: it holds no manifest.json" in refused(verb, tmp_path, *video)
    weights = copy / "model.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert f"{copy} is damaged: model.bin has changed since the export" in refused(verb, copy, *video)
    weights.write_bytes(whole)
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest.replace('"precision": "fp32"', '"precision": "fp16"'))
    assert "manifest.json is damaged: it has changed since the export" in refused(verb, copy, *video)
    for outside in ("../secret", "/etc/passwd"):
        (copy / "manifest.json").write_text(manifest)
        list_file(copy / "manifest.json", outside)
        assert f"{copy} points outside its folder, at {outside!r}: refused" in refused(verb, copy, *video)


def test_a_damaged_bundle_leaves_no_report(copy: Path, tmp_path: Path, refused: Refused) -> None:
    (copy / "model.bin").unlink()
    assert f"{copy} lacks model.bin" in refused("validate", copy, "--html", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_file_that_ends_early_is_no_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise EOFError("no data left")

    monkeypatch.setattr("edgeact.runtime.load", load)
    with pytest.raises(RuntimeError, match="a file ended early: no data left"):
        main(["run", "bundle", "video.mp4"])


# What works


def test_models(run: Edgeact, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = json.loads(run("models", "--json").out)
    assert [row["name"] for row in listed] == list_models()
    assert all(row["spec"] == edgeact.ClipSpec.from_dict(row["spec"]).to_dict() for row in listed)
    table = run("models").out
    assert all(name in table for name in list_models())
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "building a network needs torch, which is not installed: pip install 'edgeact[export]'" in refused("models")


def test_targets(run: Edgeact) -> None:
    (row,) = (row for row in json.loads(run("targets", "--json").out) if row["name"] == "openvino")
    assert row["precisions"][:2] == ["fp32", "fp16"]
    assert (row["forms"][0], row["runs_here"], row["install"]) == ("volumetric", True, None)
    assert "openvino" in run("targets").out
    (row,) = (row for row in json.loads(run("targets", "--json").out) if row["name"] == "jetson")
    assert (row["runs_here"], row["proxy"], row["install"]) == (False, "onnxruntime", None)
    assert "onnxruntime" in run("targets").out


def test_a_target_that_only_another_system_or_an_emulator_runs(run: Edgeact, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> dict[str, Any]:
        return {row["name"]: row for row in json.loads(run("targets", "--json").out)}

    monkeypatch.setattr("sys.platform", "linux")
    coreml = rows()["coreml"]
    assert (coreml["runs_here"], coreml["install"]) == (False, None), "installing coremltools does not help"
    assert "macOS" in coreml["cannot_run"]
    assert "macOS" in run("targets").out
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert (rows()["qualcomm"]["runs_here"], rows()["openvino"]["emulated"]) == (True, None)
    assert "x86 library" in rows()["qualcomm"]["emulated"]
    assert "emulated" in run("targets").out
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert rows()["qualcomm"]["emulated"] is None


def test_what_targets_say_to_install_exists(run: Edgeact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeact.runtime.is_installed", lambda runtime: False)
    said = [row["install"] for row in json.loads(run("targets", "--json").out) if row["install"]]
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = {line.partition("[")[2].partition("]")[0].replace("_", "-") for line in said}
    assert {"qnn", "openvino"} <= named <= extras.keys()
    assert "edgeact[qnn]" in run("targets").out, "brackets are no markup"


def test_a_proxy_says_so(run: Edgeact, tmp_path: Path) -> None:
    given = ("export", "--target", "jetson", "--clips", "12", "--rounds", "1", "--quiet", "--out", str(tmp_path))
    assert "proxy: onnxruntime " in run(*given).out
    bundle = tmp_path / "ir_csn_26-jetson-fp32"
    said = run("run", str(bundle), str(bundle / "golden" / "clip_0.mp4"))
    assert said.err == "onnxruntime runs in place of tensorrt: its logits are a proxy\n"
    assert " s  " in said.out


def test_check_forecasts_a_target(run: Edgeact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("check", "--target", "android", *TINY, *SPEC)
    assert done.status == 0
    assert "lowered conv3d" in done.out
    assert "✓ runs  ir_csn_26 → android, unrolled: 100.00% of" in done.out
    told = json.loads(run("check", "--target", "openvino", *TINY, *SPEC, "--json").out)
    assert told["accelerated_macs"] == told["macs"] == sum(layer["macs"] for layer in told["layers"])
    assert {layer["support"] for layer in told["layers"]} == {"native"}
    (tmp_path / "product.py").write_text(
        "import torch\nclass build(torch.nn.Conv3d):\n"
        "    def __init__(self, num_classes):\n        super().__init__(3, num_classes, 2)\n"
        "    def forward(self, clip):\n        return super().forward(clip).cumprod(2).mean((2, 3, 4))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = run("check", "--target", "litert", "--model", "product:build", *SPEC)
    assert done.status == 1
    assert "cannot run cumprod (1): aten.cumprod" in done.out
    assert "✗ cannot run  product:build → litert, unrolled: 1 of 8 ops have no kernel" in done.out


def test_check_can_forbid_fallbacks(run: Edgeact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elu.py").write_text(
        "import torch\ndef build(num_classes):\n"
        "    layers = (torch.nn.Conv3d(3, num_classes, 2), torch.nn.ELU(), torch.nn.AdaptiveAvgPool3d(1))\n"
        "    return torch.nn.Sequential(*layers, torch.nn.Flatten())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    check = ("check", "--target", "android", "--model", "elu:build", *SPEC)
    assert run(*check).status == 0
    too_many, held = (run(*check, "--max-fallback", str(most)) for most in (0, 1))
    assert (too_many.status, held.status) == (1, 0)
    assert "ops that fall back: 1; --max-fallback allows 0" in too_many.err
    assert "allows" not in held.err


def test_check_refuses_what_is_not_there(refused: Refused) -> None:
    assert "did you mean 'litert'" in refused("check", "--target", "liter")
    assert "unknown form of target 'litert' 'volumetric'" in refused(
        "check", "--target", "litert", "--form", "volumetric"
    )
    assert "target 'litert' has no option 'backend'" in refused("check", "--target", "litert", "--backend", "xnnpack")


@pytest.mark.usefixtures("project")
def test_check_counts_the_classes(videos: Path, run: Edgeact) -> None:
    def classes(*arguments: str | Path) -> int:
        layers = json.loads(run("check", "--target", "openvino", *SPEC, "--json", *arguments).out)["layers"]
        return int(layers[-1]["shape"][-1])

    small = ("--model", "cli_nets:pooled")
    assert classes(*small) == 400
    assert classes(*small, "--data", videos) == 12
    assert classes() == 12


def test_export_prints_its_report_and_missed_gates_exit_with_1(videos: Path, tmp_path: Path, run: Edgeact) -> None:
    arguments = ("export", *TINY, *SPEC, *QUICK, *OPEN_GATES, "--data", videos, "--out", tmp_path, "--clips", "12")
    done = run(*arguments, "--json")
    assert (done.status, done.err) == (0, "")
    report = json.loads(done.out)
    folder = tmp_path / "ir_csn_26-openvino-fp32"
    assert report == json.loads((folder / "report.json").read_text())
    assert report["held"]
    assert report["latency"]["threads"] == 1
    assert any("no checkpoint was given" in note for note in report["notes"])
    assert edgeact.open_bundle(folder).manifest["facts"]["options"]["width"] == 0.125
    done = run(*arguments, "--min-sqnr", "149")
    assert done.status == 1
    failed = tmp_path / f"{folder.name}-failed"
    assert str(failed) in done.out
    assert "SQNR" in done.out
    assert "149" in done.out
    assert edgeact.open_bundle(failed).manifest["facts"]["held"] is False
    assert edgeact.open_bundle(failed).name == failed.name
    assert report == json.loads((folder / "report.json").read_text())  # the one that held is still there
    assert sorted(file.name for file in tmp_path.iterdir()) == [folder.name, failed.name]


def test_a_trained_checkpoint_is_exported_with_its_contract(
    checkpoint: Path, videos: Path, tmp_path: Path, run: Edgeact
) -> None:
    arguments = ("export", *QUICK, *OPEN_GATES, "--data", videos, "--out", tmp_path, "--checkpoint", checkpoint)
    done = run(*arguments, "--clips", "12", "--crop", "28x32", "--json")
    assert done.status == 0, done.err
    assert any("ClipSpec differs from the checkpoint's" in note for note in json.loads(done.out)["notes"])
    opened = edgeact.open_bundle(tmp_path / "ir_csn_26-openvino-fp32")
    assert opened.spec.clip_shape == (4, 28, 32, 3)
    assert opened.manifest["facts"]["training"]["config"]["epochs"] == 1


def test_validate(bundle: Path, tmp_path: Path, run: Edgeact) -> None:
    page = tmp_path / "report.html"
    arguments = ("validate", bundle, "--threads", "1", "--rounds", "1", "--quiet")
    done = run(*arguments, "--json", "--html", page)
    assert (done.status, done.err) == (0, "")
    report = json.loads(done.out)
    assert report["held"]
    assert report["accuracy"] == {"not_measured": "give --data to run the 24 clips of the evaluation set"}
    assert "<html" in page.read_text()
    done = run(*arguments, "--min-sqnr", "149")
    assert done.status == 1
    assert f"bundle  {bundle}" in done.out
    done = run(*arguments, "--min-speedup", "2")
    assert (done.status, done.out) == (2, "")
    assert "--min-speedup compares with PyTorch, which validate does without" in done.err


def test_validate_by_the_results_of_a_device(bundle: Path, tmp_path: Path, run: Edgeact, refused: Refused) -> None:
    opened, file = edgeact.open_bundle(bundle), tmp_path / "results.json"
    golden = [{"id": clip.id, "logits": clip.logits.tolist()} for clip in opened.golden()]
    fields = {"schema": 1, "bundle": {"name": "tiny", "digest": opened.manifest["digest"]}, "golden": golden}
    fields |= {"created": "2026-11-22T09:00:00Z", "runtime": {"name": "onnxruntime", "version": "1.31.1"}}
    fields |= {"device": {"name": "A board", "facts": {"power mode": "15W"}}, "latency_ms": [10, 11, 12]}
    fields["runtime"] |= {"proxy_for": "tensorrt"}
    file.write_text(json.dumps(fields))
    done = run("validate", bundle, "--results", file, "--json", "--quiet")
    assert (done.status, done.err) == (0, "")
    report = json.loads(done.out)
    assert report["environment"] == {"device": "A board", "power mode": "15W"}
    assert report["latency"]["runtime"] == "onnxruntime 1.31.1, proxy for tensorrt"
    assert report["accuracy"] == {"not_measured": "the results leave it out"}
    text = " ".join(run("validate", bundle, "--results", file).out.split())
    assert "measured 2026-11-22 09:00:00 UTC, A board" in text
    assert "threads not given, 3 rounds" in text
    golden[0]["logits"] = (100 * np.array(golden[0]["logits"])).tolist()
    file.write_text(json.dumps(fields))
    assert run("validate", bundle, "--results", file).status == 1
    file.write_text("{}")
    assert f"{file} is no results.json: at $: 'schema' is a required property" in refused(
        "validate", bundle, "--results", file
    )
    for option in (("--data", "motion"), ("--threads", "0"), ("--rounds", "30"), ("--skip-corrupt",)):
        error = refused("validate", bundle, "--results", file, *option)
        assert f"{option[0]} says how to run the bundle here, --results FILE was measured elsewhere: give one" in error


def test_results_cannot_write_to_the_terminal(tmp_path: Path, run: Edgeact, refused: Refused) -> None:
    bundle, file = write_bundle(tmp_path), tmp_path / "r.json"
    fields, red = results_fields(bundle), "\x1b[31mX"
    for hostile in (
        {"device": {"name": "d", "facts": {red: 5}}},
        {"bundle": {"name": red, "digest": red}},
        {red: 1},
        {"placement": {"not_measured": "x", red: 1}},
    ):
        error = refused("validate", bundle.path, "--results", write_fields(file, fields | hostile))
        assert "\x1b" not in error
        assert error.strip().isprintable()
    assert "\x1b" not in refused("validate", tmp_path / red)
    told = fields | {"notes": [red], "device": {"name": red, "facts": {}}, "skipped": [red]}
    done = run("validate", bundle.path, "--results", write_fields(file, told))
    assert "[31mX" in done.out
    assert "\x1b" not in done.out + done.err
    folder = tmp_path / "[red]odd"
    folder.mkdir()
    assert "[red]odd" in run("validate", write_bundle(folder).path, "--results", write_fields(file, fields)).out


def test_diff_of_a_bundle_with_itself(bundle: Path, run: Edgeact) -> None:
    done = run("diff", bundle, bundle)
    assert (done.status, done.err) == (0, "")
    text = " ".join(done.out.split())
    assert text.startswith("✓ held B against A")
    assert "clips 24 of the evaluation set" in text
    assert "SQNR exact max abs 0, cosine 1.0000000" in text
    found = json.loads(run("diff", bundle, bundle, "--json").out)
    assert (found["held"], found["agreement"], found["flips"], found["latency_ms"]["ratio"]) == (True, 1.0, [], 1.0)
    assert found["limits"]["min_agreement"] == 0.0  # the bundle's own gate


def test_diff_shows_what_changed_and_exits_with_1_past_a_limit(tmp_path: Path, run: Edgeact) -> None:
    one = write_bundle(tmp_path, "one", artifact=logits())
    two = write_bundle(tmp_path, "two", artifact=logits(flipped=3), latency_ms=15.0, kernels={"conv": 8, "x[red]": 1})
    done = run("diff", one.path, two.path, "--max-slower", "1.2")
    assert (done.status, done.err) == (1, "")
    text = " ".join(done.out.split())
    for words in (
        "✗ fell short B against A",
        "✗ agreement: 75.00% is below 90.00% (3 of 12 clips flip)",
        "✗ latency: B takes 1.50x as long as A, more than 1.2x",
        "top-1 100.0 % 75.0 % drop 25.00 pt",
        "latency p50 10 ms 15 ms 1.50×",
        "left/0.mp4 left left right",
        "gemm 9 0 gone",
        "x[red] 0 1 appeared",
    ):
        assert words in text, words
    assert run("diff", one.path, two.path, "--min-agreement", "0.7", "--max-drop", "30").status == 0
    files = [write_fields(tmp_path / f"{i}.json", results_fields(one, logits(flipped=i))) for i in (0, 1)]
    text = " ".join(run("diff", *files).out.split())
    assert text.startswith("compared, no limits B against A")
    assert "left/0.mp4 – class 0 class 1" in text
    assert "pool" not in text
    assert "left/0.mp4 left left right" in " ".join(run("diff", *files, "--bundle", one.path).out.split())
    text = " ".join(run("diff", one.path, files[0], "--max-drop", "100").out.split())
    assert "new: pool" in text


def test_diff_of_many_flips_and_of_nothing_measured(tmp_path: Path, run: Edgeact) -> None:
    kernels = {f"kernel {i}": 1 for i in range(30)}
    one = write_bundle(tmp_path, "one", artifact=logits())
    two = write_bundle(tmp_path, "two", artifact=logits(), latency_ms=None, kernels=kernels)
    text = " ".join(run("diff", one.path, two.path).out.split())
    assert "11 more: --json lists every one" in text
    assert "latency p50 not measured: not asked" in text
    fields = without(results_fields(one), "placement")
    text = " ".join(run("diff", one.path, write_fields(tmp_path / "r.json", fields)).out.split())
    assert "placement not measured: the results leave it out" in text


def test_diff_refuses_what_cannot_be_compared(bundle: Path, tmp_path: Path, refused: Refused) -> None:
    one = write_bundle(tmp_path, "one", artifact=logits())
    error = f"{bundle} tells 12 classes apart, {one.path} 3: they cannot be compared"
    assert error in refused("diff", bundle, one.path)
    assert "stores no logits of its artifact" in refused("diff", one.path, write_bundle(tmp_path, "old").path)
    assert "min_agreement is 2.0: it is a share" in refused("diff", one.path, one.path, "--min-agreement", "2")
    assert "Missing argument 'B'" in refused("diff", one.path)


def test_a_stored_gate_of_speed_is_not_forgotten(copy: Path, run: Edgeact) -> None:
    from edgeact._manifest import manifest_digest

    fields = json.loads((copy / "manifest.json").read_text())
    fields["gates"]["min_speedup"] = 1.5
    (copy / "manifest.json").write_text(json.dumps(fields | {"digest": manifest_digest(fields)}))
    arguments = ("validate", copy, "--threads", "1", "--rounds", "1", "--quiet", "--json")
    report = json.loads(run(*arguments).out)
    assert any(note.startswith("the gate of 1.5x of PyTorch eager is not judged: ") for note in report["notes"])
    report = json.loads(run(*arguments, "--require-all").out)
    assert any(line.startswith("latency: speed-up not measured: PyTorch is not used") for line in report["failures"])


def test_run_prints_windows_and_saves_the_labelled_video(
    bundle: Path, videos: Path, tmp_path: Path, run: Edgeact
) -> None:
    import av

    def frames(file: Path) -> list[tuple[int, int]]:
        with av.open(file) as container:
            return [(frame.width, frame.height) for frame in container.decode(video=0)]

    video, saved = first_test_clip(videos), tmp_path / "out.mp4"
    done = run("run", bundle, video, "--threads", "1", "--json", "--save", saved)
    assert done.status == 0, done.err
    assert done.err == f"wrote {saved}\n"
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert all(len(row["scores"]) == 3 and row["start_s"] < row["end_s"] for row in rows)
    assert frames(saved) == frames(video)
    every = [
        json.loads(line)
        for line in run("run", bundle, video, "--json", "--hop", "1", "--top", "12").out.split("\n")[:-1]
    ]
    assert len(every) > len(rows)
    assert sum(score for _, score in every[0]["scores"]) == pytest.approx(1)
    text = run("run", bundle, video, "--threads", "1").out
    assert text.splitlines()[0].endswith("  ".join(f"{label} {score:.3f}" for label, score in rows[0]["scores"]))


def test_run_refuses(
    bundle: Path, videos: Path, tmp_path: Path, refused: Refused, run: Edgeact, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = shutil.copy(first_test_clip(videos), tmp_path / "video.mp4")
    rubbish = tmp_path / "rubbish.mp4"
    rubbish.write_bytes(b"no video" * 100)
    assert "no such file" in refused("run", bundle, tmp_path / "no.mp4")
    assert f"{rubbish}: not a video that can be read" in refused("run", bundle, rubbish)
    assert "--hop" in refused("run", bundle, video, "--hop", "0")
    camera = refused("run", bundle, "/dev/video0", "--save", tmp_path / "out.mp4")
    assert "--save needs a video file, found '/dev/video0': record the camera first" in camera
    before = sorted(tmp_path.iterdir())

    def save(file: Path) -> str:  # nothing on stdout: it is refused before the video is classified
        return refused("run", bundle, video, "--threads", "1", "--save", file)

    assert f"error: --save {video} is the video itself: give another file" in save(Path(video))
    assert f"error: --save {tmp_path} is a folder: give a file, such as {tmp_path / 'labelled.mp4'}" in save(tmp_path)
    missing = tmp_path / "no" / "out.mp4"
    assert f"error: --save {missing}: the folder {missing.parent} does not exist" in save(missing)
    assert "FFmpeg writes no .xyz files" in save(tmp_path / "out.xyz")
    assert "cannot be encoded as libx264 in .gif" in save(tmp_path / "out.gif")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert f"the folder {tmp_path} cannot be written to" in save(tmp_path / "out.mp4")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "drawing labels on a video needs pillow" in save(tmp_path / "out.mp4")
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(edgeact.InputError, match="top is 0: at least one label is given per window"):
        next(classify_video(edgeact.load(bundle, threads=1), video, hop=1, top=0))


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A folder on a file system of so many kilobytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(kilobytes: int) -> Path:
        options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(["mount", *options], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command to make a small file system with")
        if done.returncode != 0:
            pytest.skip(f"a small file system may not be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for mounted_folder in mounted:
        subprocess.run(["umount", "--lazy", str(mounted_folder)], check=True)


# 200 kB hold no model.bin; 600 kB hold it and not what follows
@pytest.mark.parametrize("kilobytes", [200, 600])
def test_export_to_a_full_disk(
    kilobytes: int, videos: Path, small_disk: Callable[[int], Path], refused: Refused
) -> None:
    disk = small_disk(kilobytes)
    refused("export", *TINY, *SPEC, *QUICK, "--data", videos, "--out", disk / "out", "--clips", "12")
    assert not list(disk.iterdir())


# 200 kB hold no checkpoint; 700 kB hold it and not the state that follows
@pytest.mark.parametrize("kilobytes", [200, 700])
def test_train_to_a_full_disk(
    kilobytes: int, videos: Path, small_disk: Callable[[int], Path], refused: Refused
) -> None:
    disk = small_disk(kilobytes)
    out = disk / "m.safetensors"
    error = refused("train", *TINY, *SPEC, *TRAIN, "--data", videos, "--out", out)
    assert "No space left" in error or "cannot be written" in error
    assert {file.name for file in disk.iterdir()} <= {"m.safetensors"}


def test_a_labelled_video_to_a_full_disk(
    bundle: Path, tmp_path: Path, small_disk: Callable[[int], Path], run: Edgeact
) -> None:
    disk, noise = small_disk(8), tmp_path / "noise.mp4"
    write_video(noise, np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8), 25)
    done = run("run", bundle, noise, "--threads", "1", "--save", disk / "out.mp4")
    assert done.status == 2
    assert "error: No space left on device" in done.err
    assert not list(disk.iterdir())


# Ctrl-C and kill

# a shell that starts the tests in the background has them ignore Ctrl-C, which children inherit
START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from edgeact.cli import main; main(sys.argv[1:])"
)
STARTS_SLOWLY_S = 120  # seconds until a busy machine reaches the stage that is interrupted


def interrupt(arguments: Sequence[str | Path], reached: Callable[[], object], number: signal.Signals) -> Done:
    """Start a command, signal it once `reached()` is true, and see it end."""
    command = [sys.executable, "-c", START, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            deadline = time.monotonic() + STARTS_SLOWLY_S
            while not reached():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    return Done(process.returncode, out, err)


def assert_interrupted(done: Done, log: str = "") -> None:
    """One line, after the lines that begin with `log`."""
    *before, last = done.err.splitlines()
    assert (done.status, last) == (2, "error: interrupted: nothing half-written was left behind")
    assert all(log and line.startswith(log) for line in before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(number: signal.Signals, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = interrupt(
        ["export", *TINY, *SPEC, *QUICK, "--rounds", "10000000", "--data", videos, "--out", out],
        lambda: list(out.glob(".*.partial/model.bin")),
        number,
    )
    assert_interrupted(done)
    assert done.out == ""
    assert not out.exists()


def test_an_interrupted_training_can_be_resumed(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    metrics = tmp_path / "m.safetensors.metrics.jsonl"
    arguments: list[str | Path] = ["train", *TINY, *SPEC, *TRAIN, "--data", videos, "--out", out, "--epochs", "100000"]
    assert_interrupted(interrupt(arguments, metrics.exists, signal.SIGINT), log="epoch ")
    names = {"m.safetensors", "m.safetensors.state", "m.safetensors.metrics.jsonl"}
    assert {file.name for file in tmp_path.iterdir()} == names
    epochs = len(metrics.read_text().splitlines())
    done = interrupt([*arguments, "--resume"], lambda: len(metrics.read_text().splitlines()) > epochs, signal.SIGINT)
    assert_interrupted(done, log="epoch ")
    rows = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
    assert rows == list(range(len(rows)))


def test_an_interrupted_validate(bundle: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, page = tmp_path / "cache", tmp_path / "report.html"
    monkeypatch.setenv("EDGEACT_CACHE", str(cache))  # its first clip tells that work has begun
    arguments: list[str | Path] = [
        "validate",
        bundle,
        "--data",
        videos,
        "--rounds",
        "10000000",
        "--threads",
        "1",
        "--quiet",
    ]
    done = interrupt([*arguments, "--html", page], lambda: len(list(cache.rglob("*.rgb"))) == 24, signal.SIGINT)
    assert_interrupted(done)
    assert done.out == ""
    assert not page.exists()
    assert not list(cache.rglob("*.part"))


def test_an_interrupted_run(bundle: Path, tmp_path: Path) -> None:
    long, saved = tmp_path / "long.mp4", tmp_path / "saved" / "out.mp4"
    saved.parent.mkdir()
    frame = np.zeros((64, 64, 3), np.uint8)
    write_video(long, (frame for _ in range(6000)), 25, options={"preset": "ultrafast"})
    arguments: list[str | Path] = ["run", bundle, long, "--threads", "1", "--hop", "2000", "--save", saved]
    done = interrupt(arguments, lambda: list(saved.parent.iterdir()), signal.SIGINT)
    assert_interrupted(done)
    assert len(done.out.splitlines()) > 2
    assert not list(saved.parent.iterdir())
