from pathlib import Path

import pytest
import torch

from edgeact.errors import InputError, UnknownNameError
from edgeact.models import build_model

SOURCE = """
from torch import nn

LAYERS = 3

def network(num_classes, width=4):
    return nn.Sequential(nn.Conv3d(3, width, 3, padding=1), nn.Flatten(), nn.LazyLinear(num_classes))

def fixed():
    return nn.Identity()

def nothing(num_classes):
    return "a network"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_own_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # removed, with what build_model adds, when the test ends
    return tmp_path


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_factory_of_the_current_folder_gets_classes_and_options() -> None:
    net = build_model("my_own_nets:network", num_classes=7, options={"width": 2})
    assert net(torch.zeros(1, 3, 2, 4, 4)).shape == (1, 7)
    assert net.get_submodule("0").weight.shape == (2, 3, 3, 3, 3)


def test_a_factory_need_not_take_classes() -> None:
    assert type(build_model("my_own_nets:fixed", num_classes=7, options={})).__name__ == "Identity"


def test_a_name_without_a_colon_is_a_registered_one() -> None:
    net = build_model("ir_csn_26", num_classes=2, options={"width": 0.125})
    assert net.get_submodule("fc").weight.shape == (2, 256)
    with pytest.raises(UnknownNameError, match=r"unknown model 'my_own_nets'"):
        build_model("my_own_nets", num_classes=2, options={})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:network", r"No module named 'no_such_module'; write it as package\.module:factory"),
        ("my_own_nets:other", r"has no attribute 'other'; write it as package\.module:factory"),
        (":network", r"Empty module name; write it as"),
        ("my_own_nets:", r"has no attribute ''; write it as"),
        ("my_own_nets:LAYERS", r"LAYERS is a int, not a function or class"),
        ("my_own_nets:nothing", r"my_own_nets:nothing returned a str: it must return a torch\.nn\.Module"),
    ],
)
def test_what_is_no_factory_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(name, num_classes=2, options={})


def test_options_that_a_factory_does_not_take_are_refused() -> None:
    with pytest.raises(InputError, match=r"the factory does not take \['depth', 'num_classes'\] \(.*'depth'"):
        build_model("my_own_nets:network", num_classes=2, options={"depth": 2})
