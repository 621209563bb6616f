"""`edgeact describe`: what it prints and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from long_videos import write_long_videos
from safetensors.torch import save_file

import edgeact
from edgeact.cli._model import Network, end_in_descriptor
from edgeact.clip import ClipSpec
from edgeact.descriptor_file import load_descriptor
from edgeact.errors import CheckpointError

TINY = ("--model", "c3d", "--option", "width=0.125", "--short-side", "18", "--crop", "16", "--quiet")
HERE = (*TINY, "--workers", "1")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_long_videos(tmp_path_factory.mktemp("long") / "videos", train=4, test=1, frames=20)


def test_fit_writes_the_descriptor_and_reports_what_it_keeps(run, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "pca2.safetensors"
    status, said, noted = run("describe", "fit", "--data", videos, *HERE, "--dims", 2, "--out", out, "--json")
    assert status == 0
    assert noted.startswith("note: no checkpoint was given")
    told, found = json.loads(said), load_descriptor(out)
    assert told["explained"] == [float(share) for share in found.explained]
    assert told["videos"] == found.videos == 9
    assert (told["model"], told["layer"], told["hop"], told["skipped"]) == ("c3d", "fc6", 8, [])
    page = ("--html", tmp_path / "fit.htm")
    status, said, _ = run("describe", "fit", "--data", videos, *HERE, "--dims", 2, "--out", out, *page)
    assert status == 0
    assert "Explained variance" in page[1].read_text()
    assert "explained" in said
    assert "2 of 512 features: relu of fc6" in " ".join(said.split())


def test_fit_lists_what_it_skips(run, tmp_path: Path) -> None:
    videos = write_long_videos(tmp_path / "videos", train=3, test=1, frames=16)
    (videos / "down" / "01.mp4").write_bytes(b"nothing")
    arguments = ("describe", "fit", "--data", videos, *HERE, "--dims", 2, "--out", tmp_path / "pca.safetensors")
    status, _, said = run(*arguments)
    assert status == 2
    assert "01.mp4" in said
    status, said, _ = run(*arguments, "--skip-corrupt")
    assert status == 0
    assert "skipped:" in said
    assert "01.mp4" in "".join(said.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dims", "0"), "--dims 0: a descriptor has at least 1"),
        (("--dims", "9"), "9 usable videos in the training part"),
        (("--layer", "fc66"), "unknown feature layer 'fc66': did you mean 'fc6'?"),
        (("--order", "average"), "unknown order 'average'"),
        (("--out", "."), ". is a folder: give a file"),
        (("--out", f"{__file__}/pca.safetensors"), f"{__file__} is no folder"),
        (("--html", "."), "--html . is a folder"),
    ],
)
def test_fit_refuses_in_one_line(run, videos: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    out = tmp_path / "pca.safetensors"
    status, _, said = run("describe", "fit", "--data", videos, *HERE, "--out", out, *arguments)
    assert status == 2
    assert said.splitlines()[-1].startswith("error: ")
    assert message in said
    assert not out.exists()


def test_classify_compares_dimensions(run, videos: Path, tmp_path: Path) -> None:
    status, said, _ = run("describe", "classify", "--data", videos, *HERE, "--dims", "2,50", "--json")
    assert status == 0
    rows = json.loads(said)["rows"]
    assert [(row["name"], row["dims"]) for row in rows[:3]] == [("PCA", 2), ("PCA", 50), ("all features", 512)]
    assert "not_measured" in rows[1]["accuracy"]
    page = tmp_path / "curve.html"
    status, said, _ = run("describe", "classify", "--data", videos, *HERE, "--dims", "2,50", "--html", page)
    assert status == 0
    assert "paper (other data)" in page.read_text()
    assert str(page) in "".join(said.split())
    for word in ("all features", "random", "commonest class", "chance", "not measured"):
        assert word in said
    status, _, said = run("describe", "classify", "--data", videos, *HERE, "--dims", "2,x")
    assert status == 2
    assert "--dims '2,x'" in said


def test_export_ends_in_the_descriptor(run, videos: Path, tmp_path: Path) -> None:
    weights = tmp_path / "c3d.safetensors"
    torch.manual_seed(0)
    save_file(edgeact.create_model("c3d", num_classes=3, width=0.125, input_size=[16, 16, 16]).state_dict(), weights)
    tiny = (*TINY, "--checkpoint", weights, "--data", videos, "--option", "source=edgeact")
    pca, out = tmp_path / "pca2.safetensors", tmp_path / "bundles"
    status, _, said = run("describe", "fit", *tiny, "--workers", 1, "--dims", 2, "--out", pca)
    assert status == 0, said
    export = ("export", "--target", "openvino", "--threads", 1, "--rounds", 1, "--out", out, *tiny)
    status, said, _ = run(*export, "--model", "c3d_pca2", "--descriptor", pca, "--json")
    report = json.loads(said)
    assert (status, report["model"], report["held"]) == (0, "c3d_pca2", True)
    assert report["descriptors"]["cosine"] > 0.9999
    bundle = edgeact.open_bundle(out / "c3d_pca2-openvino-fp32")
    assert bundle.manifest["facts"]["descriptor"]["layer"] == "fc6"
    assert bundle.labels == ("across", "down", "still")
    status, said, _ = run(*export, "--descriptor", pca, "--unwhitened", "--min-cosine", 1, "--min-sqnr", 400)
    assert status == 1
    assert "10 nearest" not in said  # of three clips
    assert "cosine" in said
    for arguments, message in (
        (("--unwhitened",), "give --descriptor FILE too"),
        (("--descriptor", weights), "holds tensors but no descriptor"),
        (("--descriptor", pca, "--mean", "0.5,0.5,0.5"), "the descriptor was fitted with mean"),
        (("--model", "c3d_pca2"), "fitted first: `edgeact describe fit --model c3d --dims 2 --out pca2.safetensors"),
        (("--model", "c3d_pca10", "--descriptor", pca), "asks for 10 numbers, and"),
    ):
        status, _, said = run(*export, *arguments)
        assert status == 2
        assert message in said


def test_a_checkpoint_trained_for_int8_has_no_descriptor(run, videos: Path, tmp_path: Path) -> None:
    network = Network(torch.nn.Identity(), "c3d", {}, ClipSpec(), None, {}, quantized=object())
    pca = tmp_path / "pca2.safetensors"
    assert run("describe", "fit", "--data", videos, *HERE, "--dims", 2, "--out", pca)[0] == 0
    with pytest.raises(CheckpointError, match="trained for int8 with its classes"):
        end_in_descriptor(network, str(pca), whitened=True)
