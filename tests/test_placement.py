"""Placements: from ops to layers, in a file, and back."""

import json
from pathlib import Path

import pytest

from edgeact.errors import BundleError
from edgeact.placement import PlacedLayer, PlacedOp, Placement, read_placement, write_placement

_OPS = (
    PlacedOp(name="conv_0", kernel="Conv", unit="NPU", layer="stem", ms=0.5),
    PlacedOp(name="conv_1", kernel="Conv", unit="NPU", layer="stem", ms=0.25),
    PlacedOp(name="add", kernel="Add", unit="NPU", layer="block"),
    PlacedOp(name="gelu", kernel="Erf", unit="CPU", layer="block", fallback="no Erf"),
    PlacedOp(name="fc", kernel="Gemm", unit="NPU", layer=None),
)


def test_ops_are_gathered_by_layer() -> None:
    placement = Placement.of(_OPS, "measured", 100, moving=["Cast"])
    assert (placement.accelerated_ops, placement.fallback_ops) == (4, 1)
    assert placement.fallback == ("gelu (no Erf)",)
    assert placement.kernels == {"NPU Conv": 2, "NPU Add": 1, "CPU Erf": 1, "NPU Gemm": 1, "outside Cast": 1}
    assert placement.layers == (
        PlacedLayer(name="stem", units={"NPU": 2}, ms=0.75),
        PlacedLayer(name="block", units={"NPU": 1, "CPU": 1}, fallback_ops=1),
    )


def test_macs_come_in_the_order_of_the_network() -> None:
    placement = Placement.of(_OPS, "measured")
    assert placement.macs is None
    counted = placement.with_macs({"block": 7, "gone": 1, "stem": 30})
    assert [(layer.name, layer.macs) for layer in counted.layers] == [("block", 7), ("stem", 30)]
    assert counted.macs == (30, 7)  # of a layer of which an op falls back, nothing counts as accelerated


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    placement = Placement.of(_OPS, "estimated", 100).with_macs({"stem": 3})
    write_placement(tmp_path, placement)
    assert read_placement(tmp_path) == placement


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"kind": "guessed"}, "allowed are measured, estimated, proxy"),
        ({"accelerated_ops": 1e400}, "inf is no count"),
        ({"accelerated_ops": 1.5}, "1.5 is no count"),
        ({"accelerated_ops": True}, "True is no count"),
        ({"fallback_ops": 0}, "names 1 ops that fall back and counts 0"),
        ({"kernels": []}, "list"),
        ({"layers": [{"name": "a"}]}, "units"),
        ({"layers": [{"name": "a", "units": {}, "ms": -1}]}, "-1 is no time"),
        ({"crossing_bytes": -1}, "-1 is no count"),
    ],
)
def test_a_file_that_is_no_placement(damage: dict[str, object], told: str, tmp_path: Path) -> None:
    write_placement(tmp_path, Placement.of(_OPS, "measured"))
    file = tmp_path / "placement.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    with pytest.raises(BundleError, match=rf"does not say where each op runs: .*{told}"):
        read_placement(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000])
def test_a_file_that_is_no_json_of_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "placement.json").write_text(text)
    with pytest.raises(BundleError, match="does not say where each op runs"):
        read_placement(tmp_path)
