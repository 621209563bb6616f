"""Whole networks: the zoo, the blocks of other people's, random ones; and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowering_checks import FORMS, assert_lowers, capture, randomize_norms_, targets
from torch import nn

import edgeact
from edgeact.errors import InputError, LoweringError, UnknownNameError
from edgeact.lowering import lower
from edgeact.lowering._rules import RULES
from edgeact.models import options_for_spec

SHAPES = {"c3d": (1, 3, 16, 32, 32), "mict_resnet_18": (1, 3, 16, 32, 32), "mict_resnet_34": (1, 3, 16, 32, 32)}


@pytest.mark.parametrize(
    "name",
    # the deeper ones hold the same blocks, more of them
    [pytest.param(name, marks=pytest.mark.slow if "csn_1" in name else ()) for name in edgeact.list_models()],
)
def test_every_model(name):
    shape = SHAPES.get(name, (1, 3, 8, 32, 32))
    spec = edgeact.ClipSpec(frames=shape[2], short_side=32, crop_height=32, crop_width=32)
    torch.manual_seed(0)
    model = edgeact.create_model(name, num_classes=5, width=0.125, **options_for_spec(name, spec))
    assert_lowers(randomize_norms_(model), shape, tolerance=2e-5)


class NonLocal(nn.Module):
    """Wang et al. 2018, embedded Gaussian, with its keys and values pooled."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(3, 8, 3, padding=1)
        self.theta, self.phi, self.g = (nn.Conv3d(8, 4, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv3d(4, 8, 1), nn.BatchNorm3d(8))
        self.pool = nn.MaxPool3d((1, 2, 2))

    def forward(self, x):
        x = self.stem(x)
        theta = self.theta(x).view(1, 4, -1).transpose(1, 2)
        phi, g = (self.pool(conv(x)).view(1, 4, -1) for conv in (self.phi, self.g))
        attention = torch.matmul(theta, phi).softmax(-1)
        y = torch.matmul(attention, g.transpose(1, 2)).transpose(1, 2).reshape(1, 4, *x.shape[2:])
        return x + self.out(y)


class SqueezeExcitation(nn.Module):
    """X3D's block (Feichtenhofer 2020): depthwise 3x3x3, squeeze-excitation, Swish."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.Conv3d(8, 8, (5, 1, 1), 1, (2, 0, 0), groups=8)
        )
        self.expand = nn.Sequential(nn.Conv3d(8, 16, 1, bias=False), nn.BatchNorm3d(16), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv3d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm3d(16))
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool3d(1), nn.Conv3d(16, 8, 1), nn.ReLU(), nn.Conv3d(8, 16, 1), nn.Sigmoid()
        )
        self.project = nn.Sequential(nn.SiLU(), nn.Conv3d(16, 8, 1, bias=False), nn.BatchNorm3d(8))

    def forward(self, x):
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        return (x + self.project(y * self.squeeze(y))).relu().mean((2, 3, 4))


class SpaceTimeAttention(nn.Module):
    """torch's own encoder layer over tubelets."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv3d(3, 16, (2, 4, 4), (2, 4, 4))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")

    def forward(self, x):
        return self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1)


class ChannelsLast(nn.Module):
    """A ConvNeXt block in 3-D: depthwise 7x7x7, LayerNorm and an MLP over the last dimension."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(3, 8, 1)
        self.depthwise = nn.Conv3d(8, 8, 7, padding=3, groups=8)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

    def forward(self, x):
        x = self.stem(x)
        return x + self.mlp(self.depthwise(x).permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize("network", [NonLocal, SqueezeExcitation, SpaceTimeAttention, ChannelsLast])
def test_blocks_of_other_people(network):
    torch.manual_seed(0)
    assert_lowers(randomize_norms_(network()), (1, 3, 6, 8, 8), tolerance=5e-6)


@st.composite
def networks(draw):
    layers: list[nn.Module] = []
    channels = 3
    kernels = st.sampled_from([1, 3])
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "depthwise", "max", "avg", "norm", "act"]))
        kernel, stride = draw(kernels), draw(st.sampled_from([1, 1, 2]))
        if kind == "conv":
            wider = draw(st.sampled_from([4, 6]))
            layers.append(nn.Conv3d(channels, wider, kernel, stride, kernel // 2, bias=draw(st.booleans())))
            channels = wider
        elif kind == "depthwise":
            layers.append(nn.Conv3d(channels, channels, 3, stride, 1, groups=channels))
        elif kind == "max":
            layers.append(nn.MaxPool3d(kernel, stride, kernel // 2))
        elif kind == "avg":
            layers.append(nn.AvgPool3d(1, stride))
        elif kind == "norm":
            layers.append(nn.BatchNorm3d(channels))
        else:
            layers.append(draw(st.sampled_from([nn.ReLU(), nn.SiLU(), nn.Hardswish(), nn.Sigmoid()])))
    head = draw(st.sampled_from([[], [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels, 3)]]))
    return nn.Sequential(*layers, *head)


@given(networks(), st.integers(1, 5))
def test_random_networks(network, frames):
    assert_lowers(randomize_norms_(network), (1, 3, frames, 8, 8), tolerance=1e-5)


def test_a_uint8_clip_is_cut_before_anything_else():
    """`[1, T, H, W, 3]` as an app has it: time is found on axis 1, and no 5-D tensor but the input remains."""

    class Uint8(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(3, 4, 3)
            self.scale = nn.Buffer(torch.rand(3, 1, 1, 1))

        def forward(self, clip):
            return self.conv(clip.permute(0, 4, 1, 2, 3).float() * self.scale - 1).mean((2, 3, 4))

    clip = torch.randint(0, 256, (1, 5, 6, 6, 3), dtype=torch.uint8)
    for form in FORMS:
        lowered = lower(capture(Uint8(), clip), form=form)
        ranks = [len(n.meta["val"].shape) for n in lowered.graph.nodes if n.op == "call_function"]
        assert max(ranks) <= 4
        assert list(lowered.graph_signature.user_inputs) == ["clip"]
    assert targets(lower(capture(Uint8(), clip))).count("aten.slice.Tensor") == 5


def test_quantize_nodes_pass_through():
    """Per-tensor q/dq on activations and per-channel dq on int8 weights: the lowered program rounds as the original."""
    import torch.ao.quantization.fx._decomposed  # registers the ops

    ops = torch.ops.quantized_decomposed

    class Quantized(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Buffer(torch.randint(-127, 128, (4, 3, 3, 3, 3), dtype=torch.int8))
            self.scales, self.zeros = nn.Buffer(torch.rand(4) / 50), nn.Buffer(torch.zeros(4, dtype=torch.int64))

        def forward(self, x):
            limits = (0.03, 5, -128, 127, torch.int8)
            x = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *limits), *limits)
            weight = ops.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8)
            y = nn.functional.conv3d(x, weight, padding=1)
            return ops.dequantize_per_tensor(ops.quantize_per_tensor(y, *limits), *limits)

    clip = torch.randn(1, 3, 5, 6, 6)
    module = Quantized()
    for form in FORMS:
        lowered = lower(capture(module, clip), form=form)
        kinds = {str(tensor.dtype) for tensor in lowered.state_dict.values() if tensor.ndim == 4 and tensor.any()}
        assert kinds == {"torch.int8"}, "the weights stay integers"
        found = lowered.module(check_guards=False)(clip)
        steps = ((found - module(clip)) / 0.03).round().abs()
        assert steps.max() <= 1
        assert (steps > 0).float().mean() < 0.01  # a float sum in another order may round the other way


@pytest.mark.slow
def test_a_deep_unrolled_network_is_built_in_its_time():
    """ir_csn_50 over 32 frames is some 2,500 nodes; its size is what is checked, since a clock is no test."""
    model = edgeact.create_model("ir_csn_50", num_classes=5, width=0.0625)
    lowered = lower(capture(model, torch.zeros(1, 3, 32, 32, 32)))
    assert 2000 < len(targets(lowered)) < 3500


class Product(nn.Module):
    def forward(self, x):
        return torch.prod(x, 2)


class Sampled(nn.Module):
    def forward(self, x):
        return nn.functional.grid_sample(
            torch.ones(1, 1, 2, 2, 2), x.mean((2, 3, 4)).view(1, 1, 1, 1, 3), align_corners=True
        )


class Masked(nn.Module):
    def forward(self, x):
        return x[x > 0].mean()


class TwoIndices(nn.Module):
    def forward(self, x):
        x = nn.functional.max_pool3d(x, 1)
        return x[:, [0, 1], [1, 2]]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            Product(),
            r"prod\S* \(\S*test_networks\.py:\d+\) cannot be lowered: there is no rule for this op on a tensor with "
            r"time; supported are all pointwise ops and: .*conv3d",
        ),
        (
            Sampled(),
            r"grid_sampler_3d\S* \(\S*test_networks\.py:\d+\) cannot be lowered: there is no rule for this op of vol",
        ),
        (Masked(), "the size of its result depends on values: an edge graph has static shapes"),
        (TwoIndices(), r"test_networks\.py:\d+\) cannot be lowered: indexing a volume by several tensors"),
    ],
)
def test_refusals_name_the_op_and_its_line(network, message):
    program = capture(network, torch.zeros(1, 3, 4, 4, 4))
    with pytest.raises(LoweringError, match=message):
        lower(program)


def test_refused_inputs():
    program = capture(nn.Conv3d(3, 4, 1), torch.zeros(2, 3, 4, 4, 4))
    with pytest.raises(InputError, match="has a batch of 2: a graph is lowered for a batch of 1"):
        lower(program)
    with pytest.raises(UnknownNameError, match="unknown form 'unroled': did you mean 'unrolled'"):
        lower(program, form="unroled")
    batch = {"input": {2: torch.export.Dim("t", min=2, max=9)}}
    dynamic = torch.export.export(nn.ReLU(), (torch.zeros(1, 3, 4, 4, 4),), dynamic_shapes=batch)
    with pytest.raises(InputError, match=r"has the dynamic shape .* export with static shapes"):
        lower(dynamic)
    normed = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4)).eval()
    dynamic = torch.export.export(normed, (torch.zeros(1, 3, 4, 4, 4),), dynamic_shapes=batch)
    with pytest.raises(InputError, match=r"has the dynamic shape .* export with static shapes"):
        lower(dynamic)
    with pytest.raises(InputError, match=r"lower\(\) takes an exported program, not Conv3d: torch\.export\.export\("):
        lower(nn.Conv3d(3, 4, 1))


def test_a_layer_in_training_is_named_by_its_module():
    training = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4)).train()
    program = torch.export.export(training, (torch.zeros(1, 3, 4, 4, 4),))
    with pytest.raises(
        LoweringError, match=r"\(module '1'\) cannot be lowered: BatchNorm in training mode: call \.eval"
    ):
        lower(program)


class Counter(nn.Module):
    """Counts its clips, and normalizes them in place."""

    def __init__(self, counts):
        super().__init__()
        self.counts, self.conv = counts, nn.Conv3d(3, 4, 1)
        self.seen = nn.Buffer(torch.zeros(1))

    def forward(self, x):
        if self.counts:
            self.seen += 1
        return self.conv(x.sub_(0.5))


def test_writes():
    """Into a buffer they would outlive the clip; into the input they end with it."""
    model = Counter(counts=True)
    program = capture(model, torch.zeros(1, 3, 4, 4, 4))
    with pytest.raises(
        LoweringError, match=r"test_networks\.py:\d+\) cannot be lowered: the network writes its buffer 'seen'"
    ):
        lower(program)
    assert not model.seen.any()
    model, clip = Counter(counts=False), torch.randn(1, 3, 4, 4, 4)
    lowered = lower(capture(model, clip.clone())).module(check_guards=False)
    torch.testing.assert_close(lowered(clip), model(clip.clone()))


def test_arguments_that_no_rule_foresaw(monkeypatch):
    """Torch's own words are the cause, not the message."""

    def unready(lo, x, *_):
        """A rectifier."""
        raise IndexError("list index out of range")

    monkeypatch.setitem(RULES, torch.ops.aten.flip.default, unready)
    program = capture(Flip(), torch.zeros(1, 3, 4, 4, 4))
    with pytest.raises(LoweringError, match=r"cannot be lowered with these arguments; supported is: A rectifier\.$"):
        lower(program)


class Flip(nn.Module):
    def forward(self, x):
        return x.flip(2)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)

    def forward(self, x, times, name=None):
        return self.norm(self.conv(x)) * times


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec")
def test_inputs_that_are_no_tensors_keep_their_place():
    model, clip = randomize_norms_(Scaled()).eval(), torch.randn(1, 3, 4, 4, 4)
    program = torch.export.export(model, (clip, 3), {"name": None})
    program._example_inputs = None  # as programs of other tools have it
    torch.testing.assert_close(lower(program).module(check_guards=False)(clip, 3, name=None), model(clip, 3))


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec")
@pytest.mark.parametrize("form", FORMS)
def test_a_program_that_is_decomposed_already(form):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.up, self.norm = nn.Conv3d(3, 4, 3), nn.ConvTranspose3d(4, 4, 2, 2), nn.BatchNorm3d(4)
            self.conv2d, self.conv1d, self.up1d = nn.Conv2d(4, 4, 3), nn.Conv1d(4, 4, 2), nn.ConvTranspose1d(4, 4, 2)
            self.last, self.pool = nn.LayerNorm(4), nn.AdaptiveAvgPool3d((None, 3, 3))

        def forward(self, x):
            x = self.pool(self.norm(self.up(self.conv(x)).relu()))
            x = self.conv2d(x[0].transpose(0, 1)).flatten(1)
            return self.last(self.up1d(self.conv1d(x.T[None])).transpose(1, 2))

    model, clip = randomize_norms_(Network()), torch.randn(1, 3, 4, 6, 6)
    program = capture(model, clip).run_decompositions()
    found = lower(program, form=form).module(check_guards=False)(clip)
    torch.testing.assert_close(found, model(clip), rtol=1e-5, atol=1e-5)
