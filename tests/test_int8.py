"""int8 from clips and from training to an artifact on OpenVINO: what the export says of it, and what it refuses."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from int8_networks import Dense
from torch import Tensor, nn
from torch.nn import functional

import edgeact
from edgeact._capture import quiet_torchao
from edgeact.bundle import Bundle
from edgeact.checkpoint import load_checkpoint
from edgeact.clip import ClipSpec
from edgeact.data import open_dataset
from edgeact.errors import CheckpointError, InputError, MissingDependencyError, UnknownNameError
from edgeact.models import create_model
from edgeact.numerics import Numerics, compare_outputs
from edgeact.parity import Gates
from edgeact.placement import Placement
from edgeact.quantize.options import Calibration, Int8
from edgeact.quantize.scheme import PORTABLE, Scheme
from edgeact.train import QatConfig, TrainConfig, train

Export = Callable[..., Bundle]
OPTIONS = {"width": 0.125, "dropout": 0.0}
FEW = Int8(calibration=Calibration(clips=12))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU())
        self.body = nn.Sequential(nn.Conv3d(8, 8, 1), nn.ReLU(), nn.Conv3d(8, 8, 1), nn.ReLU())
        self.fc = nn.Linear(8, 12)

    def forward(self, clip: Tensor) -> Tensor:
        out: Tensor = self.fc(self.body(self.stem(clip)).mean((2, 3, 4)))
        return out


@pytest.fixture
def export(videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> Export:
    def call(model: nn.Module | None = None, **changed: Any) -> Bundle:
        torch.manual_seed(0)
        model = model or create_model("ir_csn_26", num_classes=12, **OPTIONS)
        gates = dataclasses.replace(Gates.defaults("int8"), min_agreement=0, max_drop_pt=100)  # untrained weights
        arguments: dict[str, Any] = {"target": "openvino", "precision": "int8", "spec": tiny_spec, "data": videos}
        arguments |= {"out": tmp_path, "threads": 1, "rounds": 1, "clips": 12, "int8": FEW, "gates": gates}
        return edgeact.export(model, **arguments | changed)

    return call


def kernels_of(bundle: Bundle) -> dict[str, int]:
    placement = bundle.report().placement
    assert isinstance(placement, Placement)
    return {name.removeprefix("CPU "): count for name, count in placement.kernels.items()}


def test_it_is_small_and_follows_the_simulation(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = create_model("ir_csn_26", num_classes=12, width=0.5)
    bundle = export(model)
    report = bundle.report()
    assert report.held, report.failures
    assert report.artifact["size_mb"] < 0.29 * report.artifact["weights_fp32_mb"], "a quarter, and the graph"
    (ranges,) = (note for note in report.notes if "ranges from 12 clips of the training part, by" in note)
    observer = bundle.manifest["facts"]["quantization"]["observer"]
    assert f"by {observer}, which loses least (" in ranges
    assert bundle.manifest["facts"]["quantization"] == {
        "clips": 12,
        "classes": 12,
        "observer": observer,
        "in_float": [],
        "kept": {},
        "symmetric": False,
        "partial_sums": False,
    }
    convolutions = {name: count for name, count in kernels_of(bundle).items() if name.startswith("Convolution")}
    assert sum(convolutions.values()) == sum(isinstance(module, nn.Conv3d) for module in model.modules())
    assert all(name.endswith("_I8") for name in convolutions), convolutions
    assert isinstance(report.numerics, Numerics)
    assert [rung.name for rung in report.numerics.rungs if rung.step_sqnr_db > 15] == [
        "folded",
        "quantized",
        "artifact",
    ]
    assert sum("20 dB of the float network" in note for note in report.notes) == 1, report.notes
    (note,) = (note for note in report.notes if "of the simulation, in the artifact" in note)
    assert note.startswith("int8: no layer is below 20 dB") or "layer4" in note, "roundings add up"

    runner, clip = edgeact.load(bundle).runner, np.load(bundle.path / "golden" / "clip_0.npy")[None]
    together = list(runner.layers(clip))
    assert len(together) == sum(convolutions.values()) + 1
    monkeypatch.setattr("edgeact.runtime.openvino._LAYERS_BYTES", sum(values.nbytes for values in together) // 3)
    apart = list(runner.layers(clip))  # other outputs are fused otherwise: roundings differ
    assert min(compare_outputs(*pair)[0] for pair in zip(together, apart, strict=True)) > 10


class Twice(Small):
    """One convolution and one linear layer, each with a bias, used on inputs of different scales."""

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip)
        x = self.body[0](5 * self.body[0](x).relu()).relu().mean((2, 3, 4))
        out: Tensor = self.fc(x)
        return out


@pytest.mark.parametrize(
    "target", ["openvino", *(pytest.param(target, marks=pytest.mark.slow) for target in ("android", "litert"))]
)
def test_a_layer_that_is_used_twice_has_two_biases(export: Export, target: str) -> None:
    model = Twice()
    with torch.no_grad():
        for module in (model.body[0], model.stem[0]):
            module.bias.uniform_(-2, 2)
    numerics = export(model, target=target).report().numerics
    assert isinstance(numerics, Numerics)
    assert numerics.sqnr_db > 25, "the artifact computes what was simulated"
    assert numerics.rungs[-1].step_sqnr_db > 30


@pytest.mark.parametrize("target", ["openvino", pytest.param("android", marks=pytest.mark.slow)])
def test_a_batch_norm_that_cannot_be_folded_is_int8(
    export: Export, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*_: Any, **__: Any) -> None:
        raise AssertionError("torchao's search for BatchNorms takes half a minute")

    monkeypatch.setattr("torchao.quantization.pt2e.qat_utils._fold_conv_bn_qat_helper", search)
    report = export(Dense(12), target=target).report()
    assert report.held, report.failures
    assert not [note for note in report.notes if "in float" in note], report.notes


class Attends(Small):
    def forward(self, clip: Tensor) -> Tensor:
        tokens = self.body(self.stem(clip)).flatten(2).transpose(1, 2)
        tokens = functional.scaled_dot_product_attention(tokens, tokens, tokens)
        out: Tensor = self.fc(tokens.mean(1))
        return out


def test_products_without_an_int8_rule_are_told(export: Export) -> None:
    notes = export(Attends()).report().notes
    (note,) = (note for note in notes if "having no int8 rule" in note)
    assert note == "int8: in float stay, having no int8 rule: 1 scaled_dot_product_attention"


def test_a_convolution_in_float_is_a_fallback(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    with quiet_torchao():
        from edgeact.quantize.annotate import SchemeQuantizer

    specs = SchemeQuantizer._specs
    monkeypatch.setattr(
        SchemeQuantizer, "_specs", lambda self, node: None if node.name == "conv3d_3" else specs(self, node)
    )
    report = export().report()
    assert not report.held
    assert "int8: in float stay layer1.0.conv3" in report.notes, report.notes
    assert any("1 ops fall back" in failure and "_f32, in float)" in failure for failure in report.failures)


def test_the_worst_layers_stay_in_float_if_asked(export: Export) -> None:
    whole, kept = export(Small(), name="a"), export(Small(), name="b", int8=dataclasses.replace(FEW, keep_float=2))
    facts = kept.manifest["facts"]["quantization"]
    assert len(facts["kept"]) == 2
    assert sorted(facts["kept"]) == sorted(facts["in_float"])
    assert list(facts["kept"].values()) == sorted(facts["kept"].values()), "the worst first"
    before, after = (bundle.report().numerics for bundle in (whole, kept))
    assert isinstance(before, Numerics)
    assert isinstance(after, Numerics)
    assert after.sqnr_db > before.sqnr_db + 0.5
    assert kept.report().held, kept.report().failures
    assert kept.manifest["gates"]["max_fallback"] == 2
    assert sum(count for name, count in kernels_of(kept).items() if name.endswith("_f32")) >= 2
    assert any("ms with these layers in float" in note for note in kept.report().notes)


class Averages(nn.Module):
    """An average over padding, of values whose zero point is not 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv, self.fc = nn.Conv3d(3, 8, 1), nn.Conv3d(8, 8, 1), nn.Linear(8, 12)
        self.pool = nn.AvgPool3d(3, 1, 1)

    def forward(self, clip: Tensor) -> Tensor:
        out: Tensor = self.fc(self.conv(self.pool(self.stem(clip) + 2)).mean((2, 3, 4)))
        return out


class Embedded(nn.Module):
    """Tokens, a class token before them, and part of a position embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.fc = nn.Conv3d(3, 16, (2, 8, 8), (2, 8, 8)), nn.Linear(16, 12)
        self.token, self.positions = (nn.Parameter(torch.randn(1, n, 16)) for n in (1, 100))

    def forward(self, clip: Tensor) -> Tensor:
        x = self.patches(clip).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        out: Tensor = self.fc((x + self.positions[:, : x.shape[1]]).relu().mean(1))
        return out


@pytest.mark.parametrize("network", [Averages, Embedded])
def test_the_artifact_follows_the_simulation(network: type[nn.Module], export: Export) -> None:
    numerics = export(network()).report().numerics
    assert isinstance(numerics, Numerics)
    assert min(rung.step_sqnr_db for rung in numerics.rungs) > 30, numerics.rungs


def test_layers_stay_in_float_by_name(export: Export) -> None:
    bundle = export(Small(), int8=dataclasses.replace(FEW, keep_float=("stem.0",)))
    report = bundle.report()
    assert report.held, report.failures
    assert bundle.manifest["facts"]["quantization"]["kept"] == {"conv3d": None}, "named, not ranked"
    assert bundle.manifest["facts"]["quantization"]["in_float"] == ["conv3d"]
    assert "int8: in float stay, as asked, stem.0" in report.notes
    with pytest.raises(
        UnknownNameError, match=r"layer 'stem': did you mean 'stem.0'\? allowed: body.0, body.2, fc, stem.0"
    ):
        export(Small(), int8=dataclasses.replace(FEW, keep_float=("fc", "stem")))


def test_auto_keeps_as_few_as_the_gates_need(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeact import _quantized

    with quiet_torchao():
        from edgeact.quantize.annotate import in_float

    judged = _quantized._holds

    def holds(network: Any, *rest: Any) -> bool:
        return judged(network, *rest) and len(in_float(network, Scheme())) >= 3

    monkeypatch.setattr(_quantized, "_holds", holds)
    bundle = export(Small(), int8=dataclasses.replace(FEW, keep_float="auto"))
    assert len(bundle.manifest["facts"]["quantization"]["kept"]) == bundle.manifest["gates"]["max_fallback"] == 3


def test_auto_says_that_it_did_not_reach_the_gates(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeact._quantized._holds", lambda *_: False)
    bundle = export(Small(), int8=dataclasses.replace(FEW, keep_float="auto"))
    assert len(bundle.manifest["facts"]["quantization"]["kept"]) == 4
    assert any("miss --max-drop or --min-agreement with every layer in float" in n for n in bundle.report().notes)


def float_network() -> nn.Module:
    torch.manual_seed(0)
    return create_model("ir_csn_26", num_classes=12, **OPTIONS).eval()


def trained(videos: Path, spec: ClipSpec, out: Path, scheme: Scheme = PORTABLE, **changed: Any) -> dict[str, float]:
    model = float_network()
    qat = QatConfig(calibration=Calibration(clips=12), freeze_after=1.0, scheme=scheme)
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 8, "threads": 1, "lr": 1e-3, "qat": qat}
    best = train(
        model,
        name="ir_csn_26",
        options=OPTIONS,
        spec=spec,
        train_set=open_dataset(videos, split="train"),
        val_set=open_dataset(videos, split="val"),
        out=out,
        config=TrainConfig(**settings),
        cache=None,
        **changed,
    )
    for name, tensor in float_network().state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0, msg=f"{name}: the teacher learnt")
    return best


@pytest.fixture(scope="module")
def checkpoint(videos: Path, tiny_spec: ClipSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("qat") / "model.safetensors"
    trained(videos, tiny_spec, out)
    return out


def test_training_leaves_the_float_network_and_an_int8_one(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    for name, tensor in float_network().state_dict().items():
        torch.testing.assert_close(loaded.state[name], tensor, rtol=0, atol=0)
    quantized = loaded.quantized
    assert quantized is not None
    assert (quantized.scheme, quantized.spec) == (PORTABLE, loaded.spec)
    assert all(low <= high for low, high in quantized.ranges.values())
    assert len(quantized.weights) == 2 * sum(isinstance(m, nn.Conv3d | nn.Linear) for m in float_network().modules())
    rows = [json.loads(line) for line in Path(f"{checkpoint}.metrics.jsonl").read_text().splitlines()]
    assert rows[0]["val_loss_untrained"] != rows[0]["val_loss"]
    assert "val_loss_untrained" not in rows[1]


def test_what_was_trained_is_what_is_exported(
    checkpoint: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is calibrated for it."""
    with quiet_torchao():
        from edgeact.quantize import ranges

    monkeypatch.setattr(ranges, "observe", lambda *_: pytest.fail("nothing is to be calibrated"))
    loaded = load_checkpoint(checkpoint)
    bundle = export(float_network(), int8=Int8(trained=loaded.quantized), name="qat")
    facts = bundle.manifest["facts"]["quantization"]
    assert facts["trained"]
    assert facts["symmetric"]
    assert not facts["partial_sums"], "OpenVINO adds taps in its accumulator"
    assert "int8: weights and ranges from quantization-aware training" in bundle.report().notes
    convolutions = [name for name in kernels_of(bundle) if name.startswith("Convolution")]
    assert convolutions
    assert all(name.lower().endswith("_i8") for name in convolutions)
    numerics = bundle.report().numerics
    assert isinstance(numerics, Numerics)
    assert numerics.rungs[-1].step_sqnr_db > 20


def test_a_killed_run_resumes_to_the_same_end(
    videos: Path, tiny_spec: ClipSpec, tmp_path: Path, checkpoint: Path
) -> None:
    out = tmp_path / "killed.safetensors"

    def killed(row: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(videos, tiny_spec, out, on_epoch=killed)
    trained(videos, tiny_spec, out, resume=True)
    first, second = load_checkpoint(checkpoint).quantized, load_checkpoint(out).quantized
    assert first is not None
    assert second is not None
    assert first.ranges == second.ranges
    for name, tensor in first.weights.items():
        torch.testing.assert_close(second.weights[name], tensor, rtol=0, atol=0)


def test_a_run_that_follows_another_network_is_another_run(videos: Path, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    def killed(row: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "m.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(videos, tiny_spec, out, on_epoch=killed)
    with pytest.raises(InputError, match="is a run with other data or settings"):
        trained(videos, tiny_spec, out, scheme=Scheme(), resume=True)


def test_what_int8_refuses(checkpoint: Path, export: Export, tiny_spec: ClipSpec, tmp_path: Path) -> None:
    quantized = load_checkpoint(checkpoint).quantized
    assert quantized is not None
    other = dataclasses.replace(quantized, spec=dataclasses.replace(tiny_spec, frames=8))
    with pytest.raises(InputError, match="int8 was trained for frames 8, not 4"):
        export(float_network(), int8=Int8(trained=other))
    affine = dataclasses.replace(quantized, scheme=Scheme())
    with pytest.raises(
        CheckpointError,
        match=r"with a free zero point, sums of taps without scales, the target demands .*--scheme affine",
    ):
        export(float_network(), int8=Int8(trained=affine), target="android")
    damaged = dataclasses.replace(quantized, weights=dict(list(quantized.weights.items())[1:]))
    with pytest.raises(CheckpointError, match="the checkpoint's int8 weights are not those of its network"):
        export(float_network(), int8=Int8(trained=damaged))
    integers = {name: tensor.int() for name, tensor in quantized.weights.items()}
    with pytest.raises(CheckpointError, match="the checkpoint's int8 weights are not those of its network"):
        export(float_network(), int8=Int8(trained=dataclasses.replace(quantized, weights=integers)))
    for bounds in ((5.0, -5.0), (0.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(InputError, match=r"the int8 range of x is .*: it must be finite, and not empty"):
            dataclasses.replace(quantized, ranges={"x": bounds})
    with pytest.raises(InputError, match="the int8 weight x is not finite"):
        dataclasses.replace(quantized, weights={"x": torch.tensor([1, torch.nan])})
    with pytest.raises(InputError, match="keep_float is 5, and this network has 4 int8 layers"):
        export(Small(), int8=dataclasses.replace(FEW, keep_float=5))
    more = dataclasses.replace(quantized, ranges={**quantized.ranges, "relu_99": (0.0, 1.0)})
    with pytest.raises(CheckpointError, match="has int8 ranges of 'relu_99', which its network lacks"):
        export(float_network(), int8=Int8(trained=more))
    unknown = dataclasses.replace(quantized, ranges={})
    with pytest.raises(InputError, match="there is no range for"):
        export(float_network(), int8=Int8(trained=unknown))
    with pytest.raises(InputError, match="options of int8 were given, and the precision is fp32"):
        export(precision="fp32")
    with pytest.raises(InputError, match="calibration takes 0 clips: int8 needs at least 1"):
        Calibration(clips=0)
    with pytest.raises(InputError, match="keep_float is -1: it is a number of layers, 'auto', or names of layers"):
        Int8(keep_float=-1)
    with pytest.raises(InputError, match=r"keep_float is \['fc'\]: it is a number .* tuple"):
        Int8(keep_float=["fc"])
    with pytest.raises(UnknownNameError, match="unknown observer 'minmax': did you mean 'min-max'"):
        Calibration(observer="minmax")
    with pytest.raises(InputError, match="is no int8 scheme"):
        Scheme.from_dict({"symmetric": 1})
    with pytest.raises(InputError, match=r"distill is 2: it is a share, from 0 to 1"):
        QatConfig(distill=2)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_without_torchao_the_extra_is_named(
    export: Export, monkeypatch: pytest.MonkeyPatch, videos: Path, tiny_spec: ClipSpec, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "edgeact.quantize.annotate", None)
    with pytest.raises(MissingDependencyError, match=r"exporting in int8 needs torchao.*edgeact\[export\]"):
        export()
    monkeypatch.setitem(sys.modules, "edgeact.quantize.training", None)
    with pytest.raises(MissingDependencyError, match=r"quantization-aware training needs torchao.*edgeact\[export\]"):
        trained(videos, tiny_spec, tmp_path / "m.safetensors")


def test_the_observers_see_the_rounding_of_training_and_of_export_alike(checkpoint: Path, tiny_spec: ClipSpec) -> None:
    """The network that is trained and the one that is exported round alike, to the bit."""
    from edgeact._capture import fold
    from edgeact.clip import normalize

    quantized = load_checkpoint(checkpoint).quantized
    assert quantized is not None
    with quiet_torchao():
        from edgeact.quantize.convert import quantize
        from edgeact.quantize.training import FakeQuantized

        graph, free = fold(float_network(), tiny_spec), fold(float_network(), tiny_spec, any_batch=True)
        graph.load_state_dict(dict(quantized.weights))
        free.load_state_dict(dict(quantized.weights))
        exported, simulated = quantize(graph, quantized.ranges, quantized.scheme), FakeQuantized(free, quantized.scheme)
    simulated.set_ranges(quantized.ranges)
    assert simulated.ranges() == quantized.ranges
    clip = np.random.default_rng(0).integers(0, 256, (1, *tiny_spec.clip_shape), dtype=np.uint8)
    x = torch.from_numpy(normalize(clip, tiny_spec))
    with torch.no_grad():
        torch.testing.assert_close(simulated(x), exported(x), rtol=1e-5, atol=1e-6)
