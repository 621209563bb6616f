"""Time becomes 2-D: any exported 3-D network as an equal network of 2-D ops.

    torch.export ─► ATen graph ─► one rule per op (`RULES`) ─► 2-D graph ─► torch.export
                    5-D tensors    Timed: frames as chunks      [1, C, H, W] per frame, or [T, C, H, W]

Read `_timed.py` first (what a tensor with time becomes), then `convolution.py`.
"""

from edgeact.lowering._lower import lower
from edgeact.lowering._rules import Conv, Taps, TapsRule, default_taps
from edgeact.lowering._timed import Form

__all__ = ["Conv", "Form", "Taps", "TapsRule", "default_taps", "lower"]
