"""The network that quantization-aware training trains is the int8 network, for batches of any size."""

import numpy as np
import pytest
import torch
from int8_networks import Dense

import edgeact
from edgeact._capture import fold, quiet_torchao
from edgeact.clip import ClipSpec, normalize
from edgeact.models import options_for_spec
from edgeact.numerics import compare_outputs
from edgeact.quantize.scheme import PORTABLE

with quiet_torchao():
    from edgeact.quantize.convert import quantize
    from edgeact.quantize.ranges import observe
    from edgeact.quantize.training import FakeQuantized

SPEC = ClipSpec(frames=16, short_side=48, crop_height=48, crop_width=48)


@pytest.mark.parametrize("name", ["ir_csn_26", "ip_csn_50", "mict_resnet_18", "c3d", "resnet3d_18", ""])
def test_what_is_trained_is_what_is_exported(name: str) -> None:
    torch.manual_seed(0)
    if name:
        model = edgeact.create_model(name, num_classes=5, width=0.125, **options_for_spec(name, SPEC)).eval()
    else:
        model = Dense(5).eval()
    clips = np.random.default_rng(0).integers(0, 256, (3, *SPEC.clip_shape), dtype=np.uint8)
    graph = fold(model, SPEC, int8=True)
    with quiet_torchao():
        ranges = observe(graph, (clip[None] for clip in clips), SPEC, PORTABLE)["mse"]
        trained = FakeQuantized(fold(model, SPEC, any_batch=True, int8=True), PORTABLE)
        trained.set_ranges(ranges)
        exported = quantize(graph, ranges, PORTABLE)
    with torch.no_grad():
        float_BK, together_BK = (net(torch.from_numpy(normalize(clips, SPEC))).numpy() for net in (model, trained))
        one_by_one_BK = torch.cat([exported(torch.from_numpy(normalize(clip[None], SPEC))) for clip in clips]).numpy()
    noise_db = compare_outputs(float_BK, one_by_one_BK)[0]
    assert compare_outputs(one_by_one_BK, together_BK)[0] > noise_db - 3, (
        "values on an edge, which each layer passes on"
    )
    assert trained.weights().keys() == graph.state_dict().keys()
    kept = trained.ranges()
    assert kept.keys() == ranges.keys()
    assert all(kept[name] == pytest.approx(seen, rel=1e-6) for name, seen in ranges.items())
