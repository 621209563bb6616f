"""`edgeact describe search`: what it prints and what it refuses."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from descriptor_samples import table
from long_videos import write_long_videos
from safetensors.torch import save_file

import edgeact
from edgeact.descriptor_table import read_table, write_table

TINY = ("--model", "c3d", "--option", "width=0.125", "--option", "source=edgeact", "--quiet")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    write_table(tmp_path / "index.npz", table())
    return tmp_path / "index.npz"


def test_hits_are_printed_and_told_as_json(run, index: Path) -> None:
    status, said, _ = run("describe", "search", "a/00.mp4", "--at", 0.4, "--index", index, "-k", 3, "--json")
    assert status == 0
    found = json.loads(said)
    assert found["query"] == {"id": "a/00.mp4", "start_s": 0.0, "end_s": 0.9, "label": "a"}
    assert (found["index"]["rows"], found["index"]["dims"], found["index"]["approximate"]) == (20, 4, False)
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    status, said, _ = run("describe", "search", "a/00.mp4", "--at", 0.4, "--index", index, "-k", 3)
    assert status == 0
    for hit in found["hits"]:
        assert f"{hit['cosine']:.4f}" in said
        assert hit["id"] in said
    assert "looked for: a/00.mp4, 0:00.0 – 0:00.9, a" in said
    assert "among 20 clips of 5 videos" in said
    status, said, _ = run("describe", "search", "a/00.mp4", "--index", index, "-k", 99)
    assert status == 0
    assert "99 hits were asked for, and there are 8 distinct moments beside the query" in " ".join(said.split())


def test_what_an_approximate_search_loses_is_told_on_request(run, index: Path) -> None:
    arguments = ("describe", "search", "a/00.mp4", "--index", index, "--approximate")
    assert "approximate: --recall measures it" in run(*arguments)[1]
    assert "finds 100.0 % of the exact 10 nearest" in " ".join(run(*arguments, "--recall")[1].split())
    said = run(*arguments, "--recall", "-k", 99)[1]
    assert "finds 100.0 % of the exact 19 nearest" in " ".join(said.split())  # of 20 rows, one asks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a/0.mp4",), "is no id of the index: did you mean 'a/0"),
        (("a/00.mp4", "--at", "77"), "a/00.mp4 has no row at 77 s"),
        (("a/00.mp4", "--recall"), "--recall measures what --approximate loses"),
        (("a/00.mp4", "--videos", "nowhere"), "--videos nowhere is no folder"),
        (("a/00.mp4", "--html", "."), "--html . is a folder"),
        (("a/00.mp4", "--bundle", "b"), "is an id of the index, whose descriptor is known"),
        (("none.mp4", "--bundle", "b"), "none.mp4: no such file, and no id of"),
        (("none.mp4", "--descriptor", "d"), "none.mp4: no such file, and no id of"),
        ((__file__,), "is a file, and no id of"),
        (("a/00.mp4", "--index", "none.npz"), "none.npz does not exist"),
        (("a/00.mp4", "--index", __file__), "unknown suffix of a file of descriptors '.py'"),
    ],
)
def test_search_refuses_in_one_line(run, index: Path, arguments: tuple[str, ...], message: str) -> None:
    status, _, said = run("describe", "search", "--index", index, *arguments)
    assert status == 2
    assert said.startswith("error: ")
    assert message in said


def test_a_damaged_index_and_a_missing_faiss_are_errors(run, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2])
    status, _, said = run("describe", "search", "a/00.mp4", "--index", index)
    assert status == 2
    assert "is no table of descriptors" in said
    monkeypatch.setitem(sys.modules, "faiss", None)
    status, _, said = run("describe", "search", "a/00.mp4", "--index", index)
    assert status == 2
    assert "pip install 'edgeact[describe]'" in said


def test_a_video_file_is_described_as_the_index_was(run, tmp_path: Path) -> None:
    videos = write_long_videos(tmp_path / "videos", train=4, test=1, frames=20)
    weights, pca, index = (tmp_path / name for name in ("c3d.safetensors", "pca.safetensors", "index.npz"))
    torch.manual_seed(0)
    save_file(edgeact.create_model("c3d", num_classes=3, width=0.125, input_size=[16, 16, 16]).state_dict(), weights)
    own = (*TINY, "--checkpoint", weights)
    size = ("--short-side", 18, "--crop", 16)
    assert run("describe", "fit", "--data", videos, *own, *size, "--dims", 2, "--out", pca)[0] == 0
    describing = (*own, "--descriptor", pca)
    assert run("describe", "extract", videos, *describing, "--workers", 1, "--out", index)[0] == 0
    rows = read_table(index)
    file, sheet = videos / rows.ids[0], tmp_path / "sheet.html"
    search = ("describe", "search", "--index", index, "--json", "--quiet")
    status, said, _ = run(*search, file, *describing, "--html", sheet)
    assert status == 0
    by_file, by_id = json.loads(said), json.loads(run(*search, rows.ids[0])[1])
    assert by_file["hits"] == by_id["hits"]  # the file is the one in the index: it does not find itself
    assert "data:image/jpeg;base64," in sheet.read_text()
    (tmp_path / "list.txt").write_text(str(file))
    status, _, said = run(*search, tmp_path / "list.txt", *describing)
    assert status == 2
    assert "list.txt is a list, and a query is one video" in said
    elsewhere = tmp_path / "copy.mp4"
    elsewhere.write_bytes(file.read_bytes())
    first = json.loads(run(*search, elsewhere, *describing, "--at", 0)[1])["hits"][0]
    assert (first["id"], first["cosine"]) == (rows.ids[0], pytest.approx(1, abs=1e-5))

    file.unlink()
    status, said, _ = run("describe", "search", "--index", index, elsewhere, *describing, "--html", sheet)
    assert status == 0
    assert f"no picture of {rows.ids[0]}" in " ".join(said.split())
    for change, message in (
        ({"network": "f" * 64}, "holds descriptors of another network: ffffffffffff, what"),
        ({"descriptor": "f" * 64}, "holds descriptors of another descriptor"),
        ({"order": "normalize-average"}, "holds descriptors of another order"),
        ({"spec": dataclasses.replace(rows.fields.spec, frames=8)}, "holds descriptors of another spec"),
    ):
        write_table(index, dataclasses.replace(rows, fields=dataclasses.replace(rows.fields, **change)))
        status, _, said = run(*search, elsewhere, *describing)
        assert status == 2
        assert message in said
    other = dataclasses.replace(rows, fields=dataclasses.replace(rows.fields, computed_by="openvino int8"))
    write_table(index, other)
    assert "the query is described by PyTorch, the index by openvino int8" in run(*search, elsewhere, *describing)[1]
    write_table(index, table(dims=3))
    status, _, said = run(*search, elsewhere, *describing)
    assert status == 2
    assert "holds descriptors of another dims: 3" in said
    write_table(index, rows)
    status, _, said = run(*search, elsewhere, *describing, "--bundle", tmp_path)
    assert status == 2
    assert "--bundle holds network and descriptor" in said
