"""Inflation: the weights of a 2D network as the start of its 3D counterpart (Carreira & Zisserman 2017, section 2.4).

A 2D kernel is repeated over the kT taps of the 3D one and divided by kT, so that a still clip, x_t = x, gives what the
2D network gives: sum over kT taps of (w / kT) * x = w * x (https://arxiv.org/abs/1705.07750).

That holds wherever every tap sees the clip. Zero padding in time is not a still clip: at the first and last frames a
tap falls on zeros and its share of the sum is lost; each padded convolution widens that border.

    frames       0  x  x  x  x  x  x  0        kT = 3, padding 1, stride 1
    convolution     -  =  =  =  =  -           = equal to the 2D network, - short by one tap of three
    and another     -  -  =  =  -  -

With valid convolutions in time (or replicated frames) every frame is equal; a padded network's mean over time is not.
"""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from edgeact.errors import CheckpointError

__all__ = ["inflate_", "inflate_state_dict"]


def inflate_state_dict(
    state_2d: Mapping[str, Tensor], model_3d: nn.Module, *, keep: Collection[str] = ()
) -> dict[str, Tensor]:
    """`state_2d` as a state dict of `model_3d`: the same names, 4-D kernels inflated where the model's are 5-D.

    Shapes decide: `[O, I, kH, kW]` becomes `[O, I, kT, kH, kW]`, divided by kT; equal shapes are copied.

    Args:
        keep: Prefixes of names whose tensors stay the model's own, as `("fc.",)` for a classifier of other classes.

    Raises:
        CheckpointError: A name is missing or unknown, or a shape neither equals the model's nor inflates to it.
    """
    own = model_3d.state_dict()
    kept = {name for name in own if name.startswith(tuple(keep))}
    # num_batches_tracked only counts training steps, and weights of before PyTorch 0.4.1 lack it
    kept |= {name for name in own if name.endswith("num_batches_tracked") and name not in state_2d}
    missing = sorted(own.keys() - kept - state_2d.keys())
    unknown = sorted(name for name in state_2d.keys() - own.keys() if not name.startswith(tuple(keep)))
    if missing or unknown:
        raise CheckpointError(
            f"the 2D weights do not inflate to this model: {len(missing)} tensors missing (first: "
            f"{missing[0] if missing else 'none'}), {len(unknown)} unknown (first: {unknown[0] if unknown else 'none'})"
        )
    return {
        name: tensor.clone() if name in kept else _inflate(name, state_2d[name], tensor) for name, tensor in own.items()
    }


def inflate_(model_3d: nn.Module, state_2d: Mapping[str, Tensor], *, keep: Collection[str] = ()) -> None:
    """Copy `state_2d`, inflated, into `model_3d`; see `inflate_state_dict`.

    Raises:
        CheckpointError: As `inflate_state_dict`; the model is then unchanged.
    """
    model_3d.load_state_dict(inflate_state_dict(state_2d, model_3d, keep=keep))


def _inflate(name: str, tensor: Tensor, own: Tensor) -> Tensor:
    if tensor.shape == own.shape:
        return tensor.detach().to(own.dtype).clone()
    if own.ndim == 5 and tensor.shape == own.shape[:2] + own.shape[3:]:
        taps = own.shape[2]
        return (tensor.detach().to(own.dtype) / taps).unsqueeze(2).repeat(1, 1, taps, 1, 1)
    raise CheckpointError(
        f"the 2D weights do not inflate to this model: {name} has shape {tuple(tensor.shape)}, "
        f"the model wants {tuple(own.shape)}, with or without its third dimension"
    )
