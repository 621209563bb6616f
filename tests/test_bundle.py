"""Bundles are untrusted: everything wrong with one is refused with a reason."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeact.bundle import (
    GoldenClip,
    ReferenceSet,
    clip_digest,
    create_bundle,
    open_bundle,
    write_golden,
    write_manifest,
    write_reference,
)
from edgeact.clip import ClipSpec
from edgeact.errors import BundleError, InputError

SPEC = ClipSpec(frames=2, short_side=8, crop_height=8, crop_width=8)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small bundle of plain files."""
    video = tmp_path / "a.mp4"
    video.write_bytes(b"video")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, SPEC.clip_shape, dtype=np.uint8)
    with create_bundle(tmp_path / "out", "small") as draft:
        (draft.folder / "model.bin").write_bytes(b"weights")
        write_golden(draft.folder, [GoldenClip("a", "left", video, frames, np.zeros(2, np.float32))])
        write_reference(
            draft.folder, ReferenceSet(("a",), np.array([1]), (clip_digest(frames),), np.zeros((1, 2), np.float32))
        )
        write_manifest(draft.folder, fields())
    return tmp_path / "out" / "small"


def fields() -> dict[str, Any]:
    return {
        "name": "small",
        "model": "m",
        "target": "openvino",
        "precision": "fp32",
        "form": "volumetric",
        "runtime": "openvino",
        "artifact": ["model.bin"],
        "spec": SPEC.to_dict(),
        "labels": ["left", "right"],
        "io": {},
        "gates": {},
        "facts": {},
    }


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as an attacker would: with a digest that fits."""
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    manifest.pop("digest", None)
    manifest["digest"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(manifest))


def test_what_is_written_is_read_back(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert (opened.name, opened.spec, opened.labels) == ("small", SPEC, ("left", "right"))
    assert opened.artifact_mb == pytest.approx(7e-6)
    (clip,) = opened.golden()
    assert (clip.id, clip.video.read_bytes()) == ("a", b"video")
    assert opened.reference().digests == (clip_digest(clip.frames),)


@pytest.mark.parametrize("name", ["model.bin", "golden/clip_0.npy", "reference.npz", "golden/golden.json"])
def test_one_changed_byte(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"is damaged: {name} has changed since the export"):
        open_bundle(bundle)


def test_a_changed_manifest(bundle: Path) -> None:
    file = bundle / "manifest.json"
    file.write_text(file.read_text().replace('"right"', '"rigth"'))
    with pytest.raises(BundleError, match=r"manifest\.json is damaged: it has changed since the export"):
        open_bundle(bundle)


def test_not_a_bundle(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle: it is not a folder"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"is not a bundle: it holds no manifest\.json"):
        open_bundle(tmp_path)
    (bundle / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match="is not JSON"):
        open_bundle(bundle)
    (bundle / "manifest.json").write_text("[]")
    with pytest.raises(BundleError, match="has schema 'list', this edgeact reads schema 1"):
        open_bundle(bundle)
    with (bundle / "manifest.json").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(BundleError, match="no bundle has a manifest that large"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=2), "has schema 2, this edgeact reads schema 1"),
        (lambda m: m.pop("labels"), "has no usable 'labels': it must be a list"),
        (lambda m: m.update(labels=[1, 2]), "has labels that are not text"),
        (lambda m: m["spec"].update(frames=-1), r"manifest that cannot be used: ClipSpec\.frames is -1"),
        (lambda m: m["files"].update({"../a.mp4": "0"}), r"points outside its folder, at '\.\./a\.mp4'"),
        (lambda m: m["files"].update({"/etc/passwd": "0"}), "points outside its folder, at '/etc/passwd'"),
        (lambda m: m["files"].update({"a\\b": "0"}), "is not a plain relative path"),
        (lambda m: m["files"].update({"gone.bin": "0"}), r"lacks gone\.bin, which its manifest lists"),
        (lambda m: m["artifact"].append(["a"]), r"names the artifact \['a'\], which is not among its files"),
        (lambda m: m["artifact"].append("gone.bin"), r"names the artifact 'gone\.bin', which is not among its files"),
    ],
)
def test_hostile_manifests(bundle: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    rewrite(bundle, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def test_a_link_out_of_the_folder(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.bin").unlink()
    (bundle / "model.bin").symlink_to(tmp_path / "a.mp4")
    with pytest.raises(BundleError, match=r"points outside its folder, at 'model\.bin'"):
        open_bundle(bundle)


def test_unlisted_files(bundle: Path) -> None:
    (bundle / "golden" / "extra.so").write_bytes(b"")
    with pytest.raises(BundleError, match=r"does not list, first 'golden/extra\.so'"):
        open_bundle(bundle)


def reseal(bundle: Path) -> None:
    """Write the manifest anew over whatever is in the folder now."""
    write_manifest(bundle, fields())


def test_golden_sets_that_do_not_fit(bundle: Path) -> None:
    np.save(bundle / "golden" / "clip_0.npy", np.zeros((1, 2, 2, 3), np.uint8))
    reseal(bundle)
    with pytest.raises(BundleError, match=r"golden clip 'a' is uint8 \(1, 2, 2, 3\), not uint8 \(2, 8, 8, 3\)"):
        open_bundle(bundle).golden()
    index = bundle / "golden" / "golden.json"
    index.write_text(index.read_text().replace("clip_0.npy", "../../a.mp4"))
    reseal(bundle)
    with pytest.raises(BundleError, match="points outside its folder"):
        open_bundle(bundle).golden()


def test_a_golden_set_that_is_empty_or_nested_without_end(bundle: Path) -> None:
    index = bundle / "golden" / "golden.json"
    np.save(bundle / "golden" / "logits.npy", np.zeros((0, 2), np.float32))
    index.write_text("[]")
    reseal(bundle)
    with pytest.raises(BundleError, match="is not a golden set: it is empty"):
        open_bundle(bundle).golden()
    for file in (index, bundle / "report.json"):
        file.write_text("[" * 100_000)
    reseal(bundle)
    with pytest.raises(BundleError, match="is not a golden set"):
        open_bundle(bundle).golden()
    with pytest.raises(BundleError, match=r"report\.json cannot be read"):
        open_bundle(bundle).report()


def test_a_pickled_array_is_never_loaded(bundle: Path) -> None:
    np.save(bundle / "golden" / "clip_0.npy", np.array([object()]), allow_pickle=True)
    np.savez(bundle / "reference.npz", ids=np.array([object()]))
    reseal(bundle)
    with pytest.raises(BundleError, match="is not a golden set: Object arrays cannot be loaded"):
        open_bundle(bundle).golden()
    with pytest.raises(BundleError, match="holds no reference outputs: Object arrays cannot be loaded"):
        open_bundle(bundle).reference()


def test_arrays_that_are_cut_short(bundle: Path) -> None:
    logits, reference = bundle / "golden" / "logits.npy", bundle / "reference.npz"
    logits.write_bytes(b"")
    whole = reference.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole.replace(b"PK", b"KP")):
        reference.write_bytes(damaged)
        reseal(bundle)
        with pytest.raises(BundleError, match=r"holds no reference outputs: .*; export the bundle again"):
            open_bundle(bundle).reference()
    with pytest.raises(BundleError, match=r"is not a golden set: .*; export the bundle again"):
        open_bundle(bundle).golden()


def test_compressed_arrays_that_are_damaged(bundle: Path) -> None:
    reference = bundle / "reference.npz"
    np.savez_compressed(reference, ids=np.zeros(4000))
    content = bytearray(reference.read_bytes())
    content[60:80] = bytes(20)
    reference.write_bytes(content)
    reseal(bundle)
    with pytest.raises(BundleError, match="holds no reference outputs"):
        open_bundle(bundle).reference()


def test_a_manifest_with_fewer_labels_than_logits(bundle: Path) -> None:
    write_manifest(bundle, fields() | {"labels": ["left"]})
    with pytest.raises(BundleError, match=r"has logits of shape \(2,\), not one for each of the 1 labels"):
        open_bundle(bundle).golden()


def test_a_reference_of_other_labels(bundle: Path) -> None:
    write_reference(bundle, ReferenceSet(("a",), np.array([5]), ("0",), np.zeros((1, 2), np.float32)))
    reseal(bundle)
    with pytest.raises(BundleError, match="does not fit the 2 labels of the manifest"):
        open_bundle(bundle).reference()


def test_the_artifacts_own_logits_are_stored_and_old_bundles_have_none(bundle: Path) -> None:
    assert open_bundle(bundle).reference().artifact is None
    one, own = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    write_reference(bundle, ReferenceSet(("a",), np.array([1]), ("0",), one, own))
    reseal(bundle)
    np.testing.assert_array_equal(open_bundle(bundle).reference().artifact, own)
    write_reference(bundle, ReferenceSet(("a",), np.array([1]), ("0",), one, np.ones((1, 3), np.float32)))
    reseal(bundle)
    with pytest.raises(BundleError, match="does not fit the 2 labels of the manifest"):
        open_bundle(bundle).reference()


def test_a_missing_report(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"report\.json cannot be read"):
        open_bundle(bundle).report()


def test_an_interrupted_bundle_leaves_the_old_one(bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()

    def interrupted() -> None:
        with create_bundle(bundle.parent, "small") as draft:
            (draft.folder / "model.bin").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (bundle / "manifest.json").read_bytes() == before
    assert [file.name for file in bundle.parent.iterdir()] == ["small"]


def test_an_interrupted_bundle_leaves_no_folder(tmp_path: Path) -> None:
    def interrupted() -> None:
        with create_bundle(tmp_path / "deep" / "out", "x"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(InputError, match=r"is left alone, choose another --out or --name: .* holds no manifest"),
        create_bundle(tmp_path, "x"),
    ):
        pass
    assert (tmp_path / "x" / "thesis.txt").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file: give a folder"), create_bundle(tmp_path / "file", "x"):
        pass


def test_only_a_bundle_and_nothing_beside_it_is_replaced(bundle: Path) -> None:
    extension = bundle.parent / "extension"  # browsers and build tools have manifests of their own
    extension.mkdir()
    (extension / "manifest.json").write_text('{"manifest_version": 3}')
    (extension / "years of work.js").write_text("")
    (bundle / "notes.txt").write_text("")
    (bundle.parent / "linked").symlink_to(bundle.parent / "nowhere")
    before = sorted(bundle.parent.rglob("*"))
    for name, reason in (
        ("extension", "has schema None"),
        ("small", r"does not list, first 'notes\.txt'"),
        ("linked", "it is a link"),
    ):
        with (
            pytest.raises(InputError, match=f"{name} is left alone, choose another --out or --name: .*{reason}"),
            create_bundle(bundle.parent, name),
        ):
            pass
    assert sorted(bundle.parent.rglob("*")) == before


def test_a_bundle_that_fell_short_stands_aside(bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    for _ in range(2):  # the next that falls short takes its place
        with create_bundle(bundle.parent, "small") as draft:
            write_manifest(draft.folder, fields() | {"artifact": []})
            draft.held = False
    assert (bundle / "manifest.json").read_bytes() == before
    assert sorted(file.name for file in bundle.parent.iterdir()) == ["small", "small-failed"]
    (bundle.parent / "small-failed" / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"small-failed is left alone"), create_bundle(bundle.parent, "small"):
        pass


def test_what_came_while_a_bundle_was_written_is_left_alone(bundle: Path) -> None:
    for place in (bundle / "thesis.txt", bundle.parent / "new" / "thesis.txt"):

        def written() -> None:
            with create_bundle(bundle.parent, place.parent.name) as draft:  # noqa: B023
                write_manifest(draft.folder, fields() | {"artifact": []})
                place.parent.mkdir(exist_ok=True)  # noqa: B023
                place.write_text("years of work")  # noqa: B023

        with pytest.raises(InputError, match="is left alone, choose another --out or --name"):
            written()
        assert place.read_text() == "years of work"
    (bundle / "thesis.txt").unlink()
    (bundle.parent / "linked").symlink_to(bundle)
    with pytest.raises(InputError, match="it is a link"), create_bundle(bundle.parent, "linked"):
        pass


def test_a_damaged_bundle_is_replaced(bundle: Path) -> None:
    (bundle / "model.bin").write_bytes(b"cut")
    with create_bundle(bundle.parent, "small") as draft:
        write_manifest(draft.folder, fields() | {"artifact": []})
    assert [file.name for file in bundle.iterdir()] == ["manifest.json"]


def test_a_bundle_is_replaced_whole(bundle: Path) -> None:
    other = bundle.parent / "other"
    shutil.copytree(bundle, other)
    with create_bundle(bundle.parent, "small") as draft:
        (draft.folder / "model.bin").write_bytes(b"new weights")
        write_manifest(draft.folder, fields())
    assert sorted(file.name for file in bundle.iterdir()) == ["manifest.json", "model.bin"]
    assert sorted(file.name for file in bundle.parent.iterdir()) == ["other", "small"]
