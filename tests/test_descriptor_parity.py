"""Networks that end in a descriptor: exported, proven, validated, and what two descriptors have in common."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from long_videos import LABELS, write_long_videos
from sklearn.neighbors import NearestNeighbors
from torch import nn

import edgeact
from edgeact._feature_layer import descriptor_network
from edgeact._manifest import write_manifest
from edgeact.accuracy import Accuracy
from edgeact.clip import ClipSpec
from edgeact.describe import fit, open_features
from edgeact.descriptor import Described, Descriptor, Examples, Reading, project, unit
from edgeact.descriptor_parity import Descriptors, compare_descriptors, nearest_clip, nearest_others
from edgeact.diff import diff
from edgeact.errors import BundleError, InputError
from edgeact.latency import Latency
from edgeact.numerics import Numerics
from edgeact.parity import Gates, NotMeasured, Report, judge
from edgeact.quantize.options import Int8
from edgeact.run import classify_video
from edgeact.runtime import needs_engine
from edgeact.targets import get_target, list_targets
from edgeact.video import iter_windows
from edgeact.whitening import Whitening

SPEC = ClipSpec(frames=16, frame_stride=1, short_side=18, crop_height=16, crop_width=16)
DIMS = 6
NOTHING = NotMeasured("not asked")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_long_videos(tmp_path_factory.mktemp("long") / "videos")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return edgeact.create_model("c3d", num_classes=3, width=0.125, input_size=[16, 16, 16]).eval()


@pytest.fixture(scope="module")
def descriptor(model: nn.Module, videos: Path) -> Descriptor:
    return fit(open_features(model, SPEC, videos, split="train", hop=8), model_name="c3d", dims=DIMS)


def export(model: nn.Module, descriptor: Descriptor, videos: Path, out: Path, **given: Any) -> edgeact.Bundle:
    whitened = given.pop("whitened", True)
    asked: dict[str, Any] = {"target": "openvino", "threads": 1, "rounds": 1} | given
    return edgeact.export(
        descriptor_network(model, SPEC, descriptor, whitened=whitened),
        spec=SPEC,
        data=videos,
        out=out,
        labels=descriptor.labels,
        model_name=f"c3d_pca{DIMS}",
        described=descriptor.described(whitened=whitened),
        **asked,
    )


@pytest.fixture(scope="module")
def bundle(
    model: nn.Module, descriptor: Descriptor, videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> edgeact.Bundle:
    return export(model, descriptor, videos, tmp_path_factory.mktemp("bundles"))


def described(dims: int = 4, classes: int = 3, examples: int = 30, seed: int = 0) -> Described:
    generator = np.random.default_rng(seed)
    return Described(
        reading=Reading(order="average-normalize", scale=np.geomspace(10, 0.1, dims)),
        examples=Examples(
            descriptors=unit(generator.standard_normal((examples, dims))).astype(np.float32),
            labels=generator.integers(0, classes, examples),
            svm_weights=generator.standard_normal((classes, dims)).astype(np.float32),
            svm_bias=np.zeros(classes, np.float32),
        ),
    )


def compared(reference: np.ndarray, artifact: np.ndarray, meant: Described) -> tuple[Accuracy, Descriptors]:
    clips = [f"{i}.mp4" for i in range(len(reference))]
    truth = np.arange(len(reference)) % 3
    return compare_descriptors(reference, artifact, truth, meant, clips=clips, labels=LABELS, max_drop_pt=1.0)


def test_neighbours_are_those_that_scikit_learn_finds() -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((1200, 4))
    found = NearestNeighbors(n_neighbors=11, metric="cosine").fit(rows).kneighbors(rows)[1]
    np.testing.assert_array_equal(nearest_others(rows, rows, 10), found[:, 1:])


def test_descriptors_are_compared_by_direction_neighbours_and_answers() -> None:
    generator, meant = np.random.default_rng(1), described()
    reference = generator.standard_normal((60, 4))
    artifact = reference + generator.standard_normal((60, 4)) * 0.2
    accuracy, found = compared(reference, artifact, meant)
    ours, theirs = (unit(outputs * meant.reading.scale) for outputs in (reference, artifact))
    cosines = (ours * theirs).sum(1)
    assert found.cosine == pytest.approx(cosines.mean())
    assert found.cosine_lowest == pytest.approx(cosines.min())
    assert found.lowest_clip == f"{cosines.argmin()}.mp4"
    errors = np.sqrt(((artifact - reference) ** 2).mean(0)) / reference.std(0)
    np.testing.assert_allclose(found.component_error, errors)
    search = {
        name: NearestNeighbors(n_neighbors=11, metric="cosine").fit(rows) for name, rows in (("r", ours), ("a", theirs))
    }
    near, other = search["r"].kneighbors(ours)[1][:, 1:], search["a"].kneighbors(theirs)[1][:, 1:]
    for neighbours in found.neighbours:
        k = neighbours.k
        wanted = np.mean([len(set(a[:k]) & set(b[:k])) / k for a, b in zip(near, other, strict=True)])
        assert neighbours.agreement == pytest.approx(wanted)
        low, high = neighbours.agreement_ci95
        assert low <= wanted <= high
        assert low < high
    across = search["r"].kneighbors(theirs, 12)[1].tolist()
    for neighbours in found.neighbours:
        hits = [near[i, 0] in [place for place in row if place != i][: neighbours.k] for i, row in enumerate(across)]
        assert neighbours.recall == pytest.approx(np.mean(hits))
    assert [neighbours.k for neighbours in found.neighbours] == [1, 5, 10]
    truth = np.arange(60) % 3
    scores = ours @ meant.examples.svm_weights.T
    assert accuracy.top1_reference == pytest.approx(np.mean(scores.argmax(1) == truth))
    nearest = meant.examples.labels[(theirs @ meant.examples.descriptors.T).argmax(1)]
    assert found.nearest_artifact == pytest.approx(np.mean(nearest == truth))


def test_the_same_descriptors_have_everything_in_common() -> None:
    outputs = np.random.default_rng(2).standard_normal((20, 4))
    accuracy, found = compared(outputs, outputs, described())
    assert (accuracy.agreement, accuracy.drop_pt, found.nearest_drop_pt) == (1, 0, 0)
    assert found.cosine == pytest.approx(1)
    assert [(near.agreement, near.recall) for near in found.neighbours] == [(1, 1)] * 3
    assert judge(Gates.for_descriptors("fp32"), NOTHING, accuracy, NOTHING, NOTHING, found) == ()


def test_gates_judge_descriptors() -> None:
    outputs = np.random.default_rng(3).standard_normal((20, 4))
    _, found = compared(outputs, -outputs, described())
    failures = judge(Gates(min_cosine=0.9, min_neighbours=0.9), NOTHING, NOTHING, NOTHING, NOTHING, found)
    assert len(failures) == 1
    assert failures[0].startswith("descriptors: cosine -1.000000 is below 0.9")
    _, found = compared(outputs, np.roll(outputs, 7, 0), described())
    failure = judge(Gates(min_neighbours=0.9), NOTHING, NOTHING, NOTHING, NOTHING, found)[-1]
    assert "of the 10 nearest clips are the reference's, below 90.00%" in failure
    _, found = compared(outputs[:1], outputs[:1], described())
    assert found.neighbours == ()
    (failure,) = judge(Gates(min_neighbours=0.9), NOTHING, NOTHING, NOTHING, NOTHING, found)
    assert "1 clips have no neighbours" in failure
    failures = judge(Gates(require_all=True), NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
    assert "descriptors: not measured: not asked" in failures
    for name in ("min_cosine", "min_neighbours"):
        with pytest.raises(InputError, match=f"{name} is 2: it is a .* from 0 to 1"):
            Gates(**{name: 2})


def test_the_bundle_says_that_it_gives_descriptors(bundle: edgeact.Bundle, descriptor: Descriptor) -> None:
    output = bundle.manifest["io"]["output"]
    assert (output["shape"], output["content"], output["layout"]) == ([1, DIMS], "descriptor", "BD")
    assert bundle.outputs == DIMS
    assert bundle.reading is not None
    np.testing.assert_allclose(bundle.reading.scale, descriptor.deviations)
    found = bundle.described()
    assert found is not None
    np.testing.assert_array_equal(found.examples.descriptors, descriptor.examples.descriptors)
    assert edgeact.load(bundle, threads=1)(bundle.golden()[0].frames[None]).shape == (1, DIMS)


def test_the_report_is_of_descriptors(bundle: edgeact.Bundle) -> None:
    report = bundle.report()
    assert report.held, report.failures
    assert isinstance(report.descriptors, Descriptors)
    assert isinstance(report.accuracy, Accuracy)
    assert isinstance(report.latency, Latency)
    assert report.descriptors.cosine > 0.999999
    assert report.descriptors.n == report.accuracy.n == 18
    assert any("linear SVM" in note for note in report.notes)
    assert isinstance(report.numerics, Numerics)
    assert all(rung.top1 is None for rung in report.numerics.rungs)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    page = (bundle.path / "report.html").read_text()
    for words in ("Ten nearest clips in common", "<h2>Descriptors</h2>", "component error", "nearest example"):
        assert words in page


@pytest.mark.parametrize("whitened", [True, False])
def test_the_artifacts_descriptors_of_videos_are_the_references(
    model: nn.Module, descriptor: Descriptor, videos: Path, tmp_path: Path, bundle: edgeact.Bundle, whitened: bool
) -> None:
    if not whitened:
        bundle = export(model, descriptor, videos, tmp_path, whitened=False)
    runner, test = edgeact.load(bundle, threads=1), open_features(model, SPEC, videos, split="test", hop=8)
    for video in list(test)[:3]:
        outputs = [runner(window.clip[None])[0] for window in iter_windows(video.sample.path, SPEC, 8)]
        wanted = unit(project(video.average[None], descriptor.components, descriptor.mean)[0])
        assert bundle.reading is not None
        np.testing.assert_allclose(bundle.reading.video(np.stack(outputs)), wanted, atol=2e-4)


def test_validate_judges_descriptors(bundle: edgeact.Bundle, videos: Path) -> None:
    report = edgeact.validate(bundle, data=videos, threads=1, rounds=1)
    assert report.held, report.failures
    assert isinstance(report.descriptors, Descriptors)
    assert report.descriptors.cosine > 0.999999
    without = edgeact.validate(bundle, threads=1, rounds=1)
    assert isinstance(without.descriptors, NotMeasured)
    short = edgeact.validate(bundle, data=videos, threads=1, rounds=1, gates=Gates(min_cosine=1.0, min_sqnr_db=500))
    assert not short.held


def test_int8_is_calibrated_on_features(model: nn.Module, descriptor: Descriptor, videos: Path, tmp_path: Path) -> None:
    gates = Gates(min_sqnr_db=0, min_agreement=0, max_drop_pt=100)
    found = export(model, descriptor, videos, tmp_path, precision="int8", gates=gates).report()
    assert isinstance(found.numerics, Numerics)
    assert [rung.name for rung in found.numerics.rungs] == ["folded", "quantized", "artifact"]
    assert isinstance(found.descriptors, Descriptors)
    assert 0.9 < found.descriptors.cosine < 0.999999
    assert isinstance(found.whitening, Whitening)
    assert found.whitening.clips == found.descriptors.n
    assert found.whitening.cosine[0] == pytest.approx(found.descriptors.cosine, abs=2e-3)
    assert found.whitening.cosine[1] < found.whitening.cosine[0]
    assert isinstance(found.accuracy, Accuracy)
    assert found.whitening.svm_reference == found.accuracy.top1_reference
    with pytest.raises(InputError, match="keep_float 'auto' judges by classes"):
        export(model, descriptor, videos, tmp_path, precision="int8", int8=Int8(keep_float="auto"))


def every_case() -> list[tuple[str, str]]:
    runs_here = [
        name for name in list_targets() if not needs_engine(get_target(name).runtime) or get_target(name).proxy
    ]
    return [(name, precision) for name in runs_here for precision in get_target(name).precisions]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "precision"), every_case())
def test_every_target_gives_descriptors(
    target: str, precision: str, model: nn.Module, descriptor: Descriptor, videos: Path, tmp_path: Path
) -> None:
    limits = {"max_drop_pt": 100, "min_agreement": 0, "min_neighbours": 0, "max_fallback": 1000}  # untrained weights
    gates = dataclasses.replace(Gates.for_descriptors(precision), **limits)
    found = export(
        model, descriptor, videos, tmp_path, target=target, precision=precision, gates=gates, clips=12
    ).report()
    if isinstance(found.descriptors, NotMeasured):
        pytest.skip(found.descriptors.not_measured)
    assert found.held, found.failures
    assert isinstance(found.descriptors, Descriptors)
    assert found.descriptors.cosine > 0.9


def test_a_descriptor_that_does_not_fit_is_refused(
    model: nn.Module, descriptor: Descriptor, videos: Path, tmp_path: Path
) -> None:
    meant = descriptor.described(whitened=True)
    how: dict[str, Any] = {"target": "openvino", "spec": SPEC, "data": videos, "out": tmp_path}
    with pytest.raises(InputError, match="the model has 3 outputs, the descriptor 6 numbers"):
        edgeact.export(model, described=meant, **how)
    fewer = dataclasses.replace(
        meant.examples, svm_weights=meant.examples.svm_weights[:2], svm_bias=meant.examples.svm_bias[:2]
    )
    network = descriptor_network(model, SPEC, descriptor)
    with pytest.raises(InputError, match="the descriptor tells 2 classes apart, the data has 3"):
        edgeact.export(network, described=dataclasses.replace(meant, examples=fewer), **how)
    assert not list(tmp_path.iterdir())


def test_verbs_of_classes_refuse_descriptors(bundle: edgeact.Bundle, videos: Path) -> None:
    with pytest.raises(InputError, match="descriptors, which have no labels"):
        next(classify_video(edgeact.load(bundle, threads=1), videos / "still" / "01.mp4", hop=8))
    with pytest.raises(InputError, match="gives descriptors"):
        diff(bundle, bundle)


def test_a_damaged_bundle_is_refused(bundle: edgeact.Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    fields = json.loads((copy / "manifest.json").read_text())
    fields["io"]["output"]["reading"]["scale"] = [1.0]
    write_manifest(copy, {key: value for key, value in fields.items() if key != "digest"})
    with pytest.raises(BundleError, match="6 positive numbers"):
        edgeact.open_bundle(copy).golden()
    write_manifest(copy, {key: value for key, value in bundle.manifest.items() if key != "digest"})
    for content in (b"", (copy / "reference.npz").read_bytes()):
        (copy / "descriptor.npz").write_bytes(content)
        write_manifest(copy, {key: value for key, value in bundle.manifest.items() if key != "digest"})
        with pytest.raises(BundleError, match="holds no examples of descriptors"):
            edgeact.open_bundle(copy).described()


def test_rungs_agree_on_the_nearest_clip() -> None:
    outputs = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    assert nearest_clip(Reading(order="average-normalize", scale=np.ones(2)))(outputs).tolist() == [1, 0, 3, 2]
