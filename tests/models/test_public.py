"""The public layouts are written down here once more, as networks and lists after the sources, and compared."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeact.cli._model import Network, find_network
from edgeact.clip import ClipSpec, normalize
from edgeact.errors import CheckpointError, InputError, UnknownNameError
from edgeact.models import create_model, list_models
from edgeact.models._public import convert_public, load_public_, matching_sources
from edgeact.models._public_sources import SOURCES

State = dict[str, Tensor]
BLOCKS = {"ir_csn_26": (2, 2, 2, 2), "ir_csn_50": (3, 4, 6, 3), "ip_csn_50": (3, 4, 6, 3)}


def unit(mm: bool, convolution: nn.Module, channels: int, relu: bool = True) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU: mmcv's ConvModule names them, torchvision numbers them."""
    layers = {"conv": convolution, "bn": nn.BatchNorm3d(channels, eps=1e-3), "activate": nn.ReLU()}
    module = nn.Sequential()
    for i, (name, layer) in enumerate(list(layers.items())[: 3 if relu else 2]):
        module.add_module(name if mm else str(i), layer)
    return module


def conv2(mm: bool, planes: int, stride: int, ip: bool) -> nn.Module:
    depthwise = nn.Conv3d(planes, planes, 3, stride, 1, groups=planes, bias=False)
    pointwise = unit(mm, nn.Conv3d(planes, planes, 1, bias=False), planes, relu=False)
    if mm:
        return nn.Sequential(*([pointwise] if ip else []), unit(mm, depthwise, planes))
    return unit(mm, nn.Sequential(*pointwise, depthwise) if ip else depthwise, planes)


class Block(nn.Module):
    def __init__(self, mm: bool, channels: int, planes: int, stride: int, ip: bool) -> None:
        super().__init__()
        out = planes * 4
        self.conv1 = unit(mm, nn.Conv3d(channels, planes, 1, bias=False), planes)
        self.conv2 = conv2(mm, planes, stride, ip)
        self.conv3 = unit(mm, nn.Conv3d(planes, out, 1, bias=False), out, relu=False)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = unit(mm, nn.Conv3d(channels, out, 1, stride, bias=False), out, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.conv3(self.conv2(self.conv1(x))) + short)


class PublicCSN(nn.Module):
    """mmaction2's Recognizer3D(ResNet3dCSN, I3DHead), or VMZ's VideoResNet, by names, layers and order."""

    def __init__(self, source: str, model: str, classes: int) -> None:
        super().__init__()
        self.mm = mm = source == "mmaction2"
        stem = unit(mm, nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), 64)
        self.trunk = nn.Sequential()
        self.trunk.add_module("conv1" if mm else "stem", stem)
        self.trunk.add_module("maxpool", nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        channels = 64
        for i, count in enumerate(BLOCKS[model]):
            planes, stage = 64 * 2**i, nn.Sequential()
            for j in range(count):
                stage.append(Block(mm, channels, planes, 2 if i and not j else 1, model.startswith("ip")))
                channels = planes * 4
            self.trunk.add_module(f"layer{i + 1}", stage)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(x).mean((2, 3, 4)))
        return logits

    def public_state(self) -> State:
        trunk, head = ("backbone.", "cls_head.fc_cls.") if self.mm else ("", "fc.")
        return {re.sub("^head.", head, re.sub("^trunk.", trunk, name)): t for name, t in self.state_dict().items()}


def shake_(net: nn.Module) -> None:
    """BatchNorm statistics and offsets of their own, which a wrong order would show."""
    for name, tensor in net.eval().state_dict().items():
        if tensor.ndim == 1 and "head" not in name:
            tensor.uniform_(0.5, 1.5)


def random_state(shapes: dict[str, tuple[int, ...]]) -> State:
    torch.manual_seed(0)
    return {name: torch.rand(shape) for name, shape in shapes.items()}


def norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def mict_shapes(blocks: tuple[int, ...], classes: int) -> dict[str, tuple[int, ...]]:
    """MiCT-Net-PyTorch: bottlenecks in a ModuleList, then the stage's own Conv3d and BatchNorm3d."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), "conv2.weight": (64, 3, 7, 7, 7)}
    shapes |= norm_shapes("bn1", 64) | norm_shapes("bn2", 64)
    before = 64
    for i, count in enumerate(blocks, start=1):
        planes = 32 * 2**i
        for j in range(count):
            block, inputs = f"layer{i}.bottlenecks.{j}", before if j == 0 else planes
            shapes[f"{block}.conv1.weight"] = (planes, inputs, 3, 3)
            shapes[f"{block}.conv2.weight"] = (planes, planes, 3, 3)
            shapes |= norm_shapes(f"{block}.bn1", planes) | norm_shapes(f"{block}.bn2", planes)
            if inputs != planes:
                shapes[f"{block}.downsample.0.weight"] = (planes, inputs, 1, 1)
                shapes |= norm_shapes(f"{block}.downsample.1", planes)
        shapes[f"layer{i}.conv.weight"] = (planes, before, 3, 3, 3)
        shapes |= norm_shapes(f"layer{i}.bn", planes)
        before = planes
    return {**shapes, "fc.weight": (classes, 512), "fc.bias": (classes,)}


# channels in and out; jfzhang95, DavideA: conv1 …; mmaction2: backbone.conv1a.conv …
CONVS = {"conv1": (3, 64), "conv2": (64, 128), "conv3a": (128, 256), "conv3b": (256, 256), "conv4a": (256, 512)}
CONVS |= dict.fromkeys(("conv4b", "conv5a", "conv5b"), (512, 512))
C3D_LAYERS = CONVS | {"fc6": (8192, 4096), "fc7": (4096, 4096), "fc8": (4096, 0)}


def c3d_name(port: str, mmaction: bool) -> str:
    if not mmaction:
        return port
    long = {"conv1": "backbone.conv1a.conv", "conv2": "backbone.conv2a.conv", "fc8": "cls_head.fc_cls"}
    return long.get(port, f"backbone.{port}.conv" if port in CONVS else f"backbone.{port}")


def c3d_state(mmaction: bool, classes: int) -> State:
    """The i-th layer is full of i + 1 (78 M numbers that take no memory), the first is random."""
    state = {}
    for i, (port, (inputs, outputs)) in enumerate(C3D_LAYERS.items()):
        name, rows = c3d_name(port, mmaction), outputs or classes
        kernel = (3, 3, 3) if port in CONVS else ()
        state[f"{name}.weight"] = torch.full((1,), i + 1.0).expand(rows, inputs, *kernel)
        state[f"{name}.bias"] = torch.full((1,), -i - 1.0).expand(rows)
    state[f"{c3d_name('conv1', mmaction)}.weight"] = torch.randn(64, 3, 3, 3, 3)
    return state


def assert_ours(model: str, state: Any, classes: int) -> None:
    with torch.device("meta"):
        own = create_model(model, num_classes=classes).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own.items()}


@pytest.mark.parametrize("source", ["mmaction2", "VMZ"])
@pytest.mark.parametrize("model", ["ir_csn_26", "ip_csn_50"])
def test_a_converted_csn_computes_what_the_public_one_does(model: str, source: str) -> None:
    torch.manual_seed(0)
    public = PublicCSN(source, model, 7)
    shake_(public)
    weights = convert_public(model, public.public_state())
    assert (weights.source, weights.num_classes, weights.bn_eps) == (source, 7, 1e-3)
    assert_ours(model, weights.state, 7)
    ours = create_model(model, num_classes=7).eval()
    load_public_(ours, weights)
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), public(clip), rtol=1e-4, atol=1e-4)


def test_public_names_are_those_of_the_repositories() -> None:
    """Names as the repositories' own code gives them, so that the networks above are no invention."""
    mmaction = """backbone.conv1.conv.weight backbone.conv1.bn.running_var backbone.layer1.0.conv2.0.conv.weight
        backbone.layer1.0.conv2.1.bn.weight backbone.layer4.0.downsample.conv.weight backbone.layer3.5.conv3.bn.bias
        cls_head.fc_cls.weight"""
    vmz = """stem.0.weight stem.1.bias layer1.0.conv1.0.weight layer1.0.conv2.0.2.weight layer1.0.conv2.0.1.bias
        layer1.0.conv2.1.weight layer2.0.downsample.1.running_mean fc.weight"""
    assert set(mmaction.split()) < PublicCSN("mmaction2", "ip_csn_50", 3).public_state().keys()
    assert set(vmz.split()) < PublicCSN("VMZ", "ip_csn_50", 3).public_state().keys()
    assert "layer1.0.conv2.0.weight" in PublicCSN("VMZ", "ir_csn_26", 3).public_state()


@pytest.mark.parametrize(("model", "blocks"), [("mict_resnet_18", (2, 2, 2, 2)), ("mict_resnet_34", (3, 4, 6, 3))])
def test_mict_has_the_names_of_its_source(model: str, blocks: tuple[int, ...]) -> None:
    state = random_state(mict_shapes(blocks, 101))
    weights = convert_public(model, state)
    assert_ours(model, weights.state, 101)
    assert weights.source == "MiCT-Net-PyTorch"
    assert any("--option version" in note for note in weights.notes)
    for name, tensor in state.items():
        assert torch.equal(weights.state[name], tensor), name


@pytest.mark.parametrize(
    ("source", "classes", "mean"),
    [("mmaction2", 101, (104, 117, 128)), ("jfzhang95", 51, (102, 98, 90)), ("DavideA", 487, (101.41, 97.66, 90.25))],
)
def test_c3d_ports(source: str, classes: int, mean: tuple[float, float, float]) -> None:
    mmaction = source == "mmaction2"
    state = c3d_state(mmaction, classes)
    weights = convert_public("c3d", state, source)
    assert_ours("c3d", weights.state, classes)
    assert (weights.num_classes, weights.bn_eps) == (classes, None)
    for i, name in enumerate(C3D_LAYERS):
        assert i == 0 or weights.state[f"{name}.weight"].flatten()[:1].item() == i + 1
        assert weights.state[f"{name}.bias"].flatten()[:1].item() == -i - 1
    # pixels less the mean, as the source feeds them; BGR where it reads with OpenCV
    pixels = torch.randint(0, 256, (1, 4, 16, 16, 3), dtype=torch.uint8)
    clip = torch.from_numpy(normalize(pixels.numpy(), weights.spec))
    fed = (pixels - torch.tensor([float(value) for value in mean])).permute(0, 4, 1, 2, 3)
    fed = fed if mmaction else fed[:, [2, 1, 0]]
    first = state[f"{c3d_name('conv1', mmaction)}.weight"]
    torch.testing.assert_close(
        nn.functional.conv3d(clip, weights.state["conv1.weight"]),
        nn.functional.conv3d(fed, first),
        rtol=1e-4,
        atol=1e-2,
    )


def test_counters_may_lack() -> None:
    state = {k: v for k, v in random_state(mict_shapes((2, 2, 2, 2), 5)).items() if "num_batches" not in k}
    weights = convert_public("mict_resnet_18", state)
    assert_ours("mict_resnet_18", weights.state, 5)
    assert weights.state["bn1.num_batches_tracked"].item() == 0


def test_the_epsilon_is_set_and_none_differs_from_our_default() -> None:
    """A trained checkpoint does not store an epsilon, so that a source with another one needs a preset of its own."""
    weights = convert_public("mict_resnet_18", random_state(mict_shapes((2, 2, 2, 2), 3)))
    net = create_model("mict_resnet_18", num_classes=3)
    load_public_(net, replace(weights, bn_eps=0.25))
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d)]
    assert {m.eps for m in norms} == {0.25}
    for source in SOURCES:
        model = next(name for name in list_models() if re.fullmatch(source.models, name))
        with torch.device("meta"):
            modules = create_model(model, num_classes=2).modules()
        eps = {m.eps for m in modules if isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d)}
        assert eps == (set() if source.bn_eps is None else {source.bn_eps})


def test_preprocessing_of_the_sources() -> None:
    specs = {(s.name, s.models): s.spec for s in SOURCES}
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for family in (r"ir_csn_\d+", r"ip_csn_\d+"):
        spec = specs[("mmaction2", family)]
        assert (spec.frames, spec.frame_stride, spec.short_side, spec.crop_height) == (32, 2, 256, 224)
        assert [v * 255 for v in (*spec.mean, *spec.std)] == pytest.approx(
            [123.675, 116.28, 103.53, 58.395, 57.12, 57.375]
        )
    vmz = specs[("VMZ", r"i[rp]_csn_\d+")]
    assert (vmz.sample_fps, vmz.frames, vmz.crop_height, vmz.mean[0]) == (15.0, 32, 224, 0.43216)
    mict = specs[("MiCT-Net-PyTorch", r"mict_resnet_\d+")]
    assert (mict.frames, mict.frame_stride, mict.short_side, mict.crop_width) == (16, 1, 192, 160)
    assert (mict.mean, mict.std) == imagenet


def test_weights_that_fit_no_source() -> None:
    state = PublicCSN("mmaction2", "ir_csn_50", 5).public_state()
    with pytest.raises(
        CheckpointError,
        match=r"no weights of 'ir_csn_26' as mmaction2 or VMZ publishes them; nearest is mmaction2, with 144 "
        r"differences \(first: backbone\.layer1\.2\.conv1\.conv\.weight is unknown",
    ):
        convert_public("ir_csn_26", state)
    del state["cls_head.fc_cls.bias"], state["cls_head.fc_cls.weight"]
    with pytest.raises(CheckpointError, match=r"2 differences \(first: cls_head\.fc_cls\.weight is missing; cls_head"):
        convert_public("ir_csn_50", state)
    narrow = random_state(mict_shapes((2, 2, 2, 2), 5)) | {"bn1.weight": torch.zeros(32)}
    with pytest.raises(
        CheckpointError, match=r"1 differences \(first: bn1\.weight has shape \(32,\) instead of \(64,\)\)"
    ):
        convert_public("mict_resnet_18", narrow)
    with pytest.raises(CheckpointError, match=r"no public weights of 'torch\.nn:Linear' are known"):
        convert_public("torch.nn:Linear", state)
    with pytest.raises(UnknownNameError, match=r"unknown source of c3d weights 'davidea': did you mean 'DavideA'\?"):
        convert_public("c3d", state, "davidea")


def test_ports_that_share_their_names_must_be_told_apart() -> None:
    state = c3d_state(False, 487)
    assert matching_sources("c3d", state) == ("jfzhang95", "DavideA")
    with pytest.raises(CheckpointError, match=r"could be from jfzhang95 or DavideA, .*--option source=jfzhang95"):
        convert_public("c3d", state)
    assert convert_public("c3d", c3d_state(False, 101)).source == "jfzhang95"
    with pytest.raises(CheckpointError, match=r"fc8\.weight has shape \(101, 4096\) instead of \(487, 4096\)"):
        convert_public("c3d", c3d_state(False, 101), "DavideA")


Find = Callable[..., Network]


@pytest.fixture
def find(tmp_path: Path) -> Find:
    def call(
        name: str | None, state: State, *, classes: int | None, data: str | None = "motion", **given: Any
    ) -> Network:
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "public.pth")
        options = given.pop("options", {})
        names = ("frames", "stride", "fps", "short_side", "crop", "mean", "std")
        return find_network(
            name=name,
            checkpoint=str(tmp_path / "public.pth"),
            options=options,
            num_classes=classes,
            data=data,
            given={key: given.get(key) for key in names},
        )

    return call


def test_the_command_line_takes_public_weights(find: Find) -> None:
    state = PublicCSN("VMZ", "ir_csn_26", 6).public_state()
    network = find("ir_csn_26", state, classes=6, frames=8, crop="64", options={"dropout": 0.0})
    spec = network.spec
    assert (spec.frames, spec.sample_fps, spec.short_side, spec.crop_height) == (8, 15.0, 256, 64)
    assert spec.mean == (0.43216, 0.394666, 0.37645)
    assert network.options == {"dropout": 0.0}
    assert torch.equal(network.model.state_dict()["layer1.0.bn3.weight"], state["layer1.0.conv3.1.weight"])
    assert "public weights from VMZ" in network.notes[0]
    assert "ClipSpec differs" in network.notes[-1]
    untouched = find("ir_csn_26", state, classes=6)
    assert (untouched.spec.frames, len(untouched.notes)) == (32, 1)
    counted = find("ir_csn_26", state, classes=None, data=None)
    assert counted.model.eval()(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 6)


def test_weights_that_nothing_gives_are_drawn_with_one_seed() -> None:
    """The same command writes the same bundle, and a worker builds the network that its client has."""
    spec, before = ClipSpec(frames=4, crop_height=32, crop_width=32, short_side=32), torch.get_rng_state()
    how: dict[str, Any] = {"name": "ir_csn_26", "checkpoint": None, "options": {"width": 0.125}, "num_classes": 5}
    once, again, other = (find_network(**how, data=None, given=spec, seed=seed).model for seed in (0, 0, 1))
    assert all(torch.equal(one, two) for one, two in zip(once.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(once.parameters()), next(other.parameters()))
    assert torch.equal(torch.get_rng_state(), before), "whoever draws next draws what it would have drawn"


def test_the_command_line_refuses_other_classes_and_other_weights(find: Find, videos: Path) -> None:
    state = PublicCSN("mmaction2", "ir_csn_26", 6).public_state()
    with pytest.raises(
        CheckpointError, match=r"public\.pth tells 6 classes apart, 12 were asked for \(those of --data"
    ):
        find("ir_csn_26", state, classes=None, data=str(videos))
    with pytest.raises(CheckpointError, match=r"public\.pth: these are no weights of 'ip_csn_50'"):
        find("ip_csn_50", state, classes=6)
    with pytest.raises(CheckpointError, match=r"the mmaction2 checkpoint holds weights of another model: .*has shape"):
        find("ir_csn_26", state, classes=6, options={"width": 0.5})
    with pytest.raises(InputError, match=r"public\.pth holds weights alone: give --model"):
        find(None, state, classes=6)
    with pytest.raises(UnknownNameError, match=r"unknown source of ir_csn_26 weights '3': allowed: VMZ, mmaction2"):
        find("ir_csn_26", state, classes=6, options={"source": 3})


def test_mict_of_our_names_must_be_told_from_its_source(find: Find) -> None:
    state = random_state(mict_shapes((2, 2, 2, 2), 6))
    with pytest.raises(
        CheckpointError, match=r"edgeact's own mict_resnet_18 or a port of MiCT-Net-PyTorch, which prepare"
    ):
        find("mict_resnet_18", state, classes=6)
    ours = find("mict_resnet_18", state, classes=6, options={"source": "edgeact"})
    theirs = find("mict_resnet_18", state, classes=6, options={"source": "MiCT-Net-PyTorch", "version": "v2"})
    assert (ours.spec.short_side, theirs.spec.short_side, theirs.spec.frame_stride) == (192, 192, 1)
    assert theirs.options == {"version": "v2"}


def test_our_own_names_are_loaded_as_they_are(find: Find) -> None:
    torch.manual_seed(0)
    own = create_model("ir_csn_26", num_classes=3, width=0.125).state_dict()
    network = find("ir_csn_26", own, classes=3, options={"width": 0.125})
    assert torch.equal(network.model.state_dict()["conv1.weight"], own["conv1.weight"])
    assert network.notes == ()


def test_a_c3d_of_our_names_must_be_told_from_a_port(find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeact.models import _public

    # an eighth of the channels, so that the file is small
    narrow = {"width": 0.125}
    monkeypatch.setattr(_public, "create_model", lambda name, num_classes: create_model(name, num_classes=1, **narrow))
    _public._shapes.cache_clear()
    own = create_model("c3d", num_classes=4, **narrow).state_dict()
    try:
        with pytest.raises(
            CheckpointError, match=r"edgeact's own c3d or a port of jfzhang95, .*--option source=edgeact"
        ):
            find("c3d", own, classes=4, options=narrow)
        ours = find("c3d", own, classes=4, options=narrow | {"source": "edgeact"})
        port = find("c3d", own, classes=4, options=narrow | {"source": "jfzhang95"})
    finally:
        _public._shapes.cache_clear()
    clip = torch.randn(1, 3, 16, 112, 112)
    with torch.no_grad():
        rgb, bgr = port.model.eval()(clip), ours.model.eval()(clip.flip(1))
    torch.testing.assert_close(rgb, bgr)
    assert "source" not in port.options
    assert ours.spec != port.spec
