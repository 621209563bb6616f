import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from edgeact.clip import ClipSpec
from edgeact.errors import InputError, UnknownNameError
from edgeact.models import create_model, default_spec, list_models, options_for_spec
from edgeact.models._registry import register_model

FAMILIES = ["ir_csn_26", "ip_csn_50", "mict_resnet_18", "mict_resnet_34", "c3d", "resnet3d_18"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These networks are tiny: a second thread only waits, seconds a test where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(name: str, size: tuple[int, int, int] = (16, 16, 16), **options: Any) -> nn.Module:
    torch.manual_seed(0)
    spec = ClipSpec(frames=size[0], short_side=max(size[1:]), crop_height=size[1], crop_width=size[2])
    return create_model(name, num_classes=3, width=0.125, **options_for_spec(name, spec), **options).eval()


def test_the_presets() -> None:
    assert list_models() == [
        "c3d",
        "ip_csn_101",
        "ip_csn_152",
        "ip_csn_50",
        "ir_csn_101",
        "ir_csn_152",
        "ir_csn_26",
        "ir_csn_50",
        "mict_resnet_18",
        "mict_resnet_34",
        "resnet3d_18",
    ]


MODELS = [pytest.param(name, marks=pytest.mark.slow if "csn_1" in name else ()) for name in list_models()]


@pytest.mark.parametrize("name", MODELS)
def test_every_preset_takes_width_and_dropout_and_the_clip_of_its_spec(name: str) -> None:
    spec = default_spec(name)
    with torch.device("meta"):
        net = create_model(name, num_classes=7, width=0.25, dropout=0.25, **options_for_spec(name, spec)).eval()
        frames, height, width, channels = spec.clip_shape
        assert net(torch.empty(2, channels, frames, height, width)).shape == (2, 7)
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.25}


@pytest.mark.parametrize("name", MODELS)
def test_options_for_a_spec_are_json_and_taken_back_from_it(name: str) -> None:
    spec = ClipSpec(frames=16, short_side=64, crop_height=48, crop_width=64)
    options = options_for_spec(name, spec)
    assert options == ({"input_size": [16, 48, 64]} if name == "c3d" else {})
    with torch.device("meta"):
        net = create_model(name, num_classes=2, width=0.125, **json.loads(json.dumps(options))).eval()
        assert net(torch.empty(1, 3, 16, 48, 64)).shape == (1, 2)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mict_resnet_34"])
def test_a_network_is_exported_for_any_batch_and_for_one_clip(name: str) -> None:
    net, clip = tiny(name), torch.randn(3, 3, 16, 16, 16)
    anything = export(net, (clip[:2],), dynamic_shapes=({0: Dim("batch", min=1, max=64)},))
    one = export(net, (clip[:1],))
    with torch.no_grad():
        torch.testing.assert_close(anything.module()(clip), net(clip))
        torch.testing.assert_close(anything.module()(clip[:1]), net(clip[:1]))
        torch.testing.assert_close(one.module()(clip[:1]), net(clip[:1]))
        assert net(clip[:1]).shape == (1, 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_reaches_every_parameter(name: str) -> None:
    net = tiny(name, (16, 32, 32), dropout=0.0).train()
    net(torch.randn(4, 3, 16, 32, 32)).square().sum().backward()
    for parameter, tensor in net.named_parameters():
        assert tensor.grad is not None, parameter
        assert tensor.grad.isfinite().all(), parameter
        assert tensor.grad.abs().sum() > 0, parameter


@pytest.mark.parametrize("name", FAMILIES)
def test_untrained_activations_neither_vanish_nor_explode(name: str) -> None:
    size = (16, 32, 32)
    spec = ClipSpec(frames=16, short_side=32, crop_height=32, crop_width=32)
    torch.manual_seed(0)
    net = create_model(name, num_classes=3, width=0.5, **options_for_spec(name, spec)).train()
    with torch.no_grad():
        features: list[torch.Tensor] = []
        last = next(m for m in net.modules() if isinstance(m, nn.Dropout))
        last.register_forward_hook(lambda module, inputs, output: features.append(inputs[0]))
        net(torch.randn(4, 3, *size))
    assert 0.01 < features[0].std() < 100


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("width", [0, -1.0, 0.01, 9, float("nan")])
def test_a_width_out_of_range_is_refused(name: str, width: float) -> None:
    with pytest.raises(InputError, match=rf"width is {width}: it must be a multiple from 0\.05 to 8"):
        create_model(name, num_classes=3, width=width)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_out_of_range_is_refused(name: str, dropout: float) -> None:
    with pytest.raises(InputError, match=rf"dropout is {dropout}: it must be from 0 up to, not including, 1"):
        create_model(name, num_classes=3, dropout=dropout)


@pytest.mark.parametrize("num_classes", [0, -1, 2.5, "3", True, None])
def test_a_number_of_classes_that_is_none_is_refused(num_classes: Any) -> None:
    with pytest.raises(InputError, match=r"num_classes is .*: it must be a whole number, at least 1"):
        create_model("ir_csn_26", num_classes=num_classes)


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(InputError, match=r"version is 'v3': allowed: v1, v2"):
        create_model("mict_resnet_18", num_classes=3, version="v3")


@pytest.mark.parametrize("size", [(15, 16, 16), (16, 15, 16), (16, 16, 15), (16, 16), (0, 0, 0)])
def test_an_input_too_small_for_c3d_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"input_size is \(.*\): C3D pools T, H and W by 16 to 32, so 16x16x16 at"):
        create_model("c3d", num_classes=3, width=0.125, input_size=size)


def test_c3d_refuses_clips_of_another_size_when_called_and_when_exported() -> None:
    net = tiny("c3d")
    message = r"built for clips of \(16, 16, 16\) \(T, H, W\), found \(16, 16, 32\): build it with input_size of"
    with pytest.raises(InputError, match=message):
        net(torch.zeros(1, 3, 16, 16, 32))
    with pytest.raises(InputError, match=message):
        export(net, (torch.zeros(1, 3, 16, 16, 32),), strict=False)


def test_unknown_names_are_answered_with_the_closest() -> None:
    for ask in (
        lambda name: create_model(name, num_classes=2),
        default_spec,
        lambda n: options_for_spec(n, ClipSpec()),
    ):
        with pytest.raises(
            UnknownNameError, match=r"unknown model 'ir_csn_262': did you mean 'ir_csn_26'\? allowed: c3d"
        ):
            ask("ir_csn_262")


def test_unknown_options_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"'c3d' does not take these options: \{'depth': 3\} .*'depth'"):
        create_model("c3d", num_classes=2, depth=3)
    with pytest.raises(InputError, match=r"'resnet3d_18' does not take these options: \{'width': 'wide'\}"):
        create_model("resnet3d_18", num_classes=2, width="wide")


def test_a_name_is_registered_once() -> None:
    def c3d(num_classes: int) -> nn.Module:
        return nn.Linear(1, num_classes)

    with pytest.raises(InputError, match=r"'c3d' is registered already, by edgeact\.models\.c3d"):
        register_model(ClipSpec())(c3d)
    assert create_model("c3d", num_classes=2, width=0.05).__class__.__name__ == "C3D"
