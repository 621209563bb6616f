"""What is known of which operators leave Apple's Neural Engine. Apple documents little: each rule names its source.

ops of an mlprogram (MIL) ─► refused ─► a placement that is estimated; `MLComputePlan` on a Mac tells the real one
"""

from collections.abc import Sequence

__all__ = ["CPU_OR_GPU", "MOVES", "NEURAL_ENGINE", "refused"]

NEURAL_ENGINE, CPU_OR_GPU = "Neural Engine", "CPU or GPU"

_GUIDE = "ane-guide.readthedocs.io"  # limits measured on devices, by family of the engine
_APPLE = "Apple, Deploying Transformers on the Apple Neural Engine, 2022"

_MOVES = """
cast concat const constexpr_affine_dequantize constexpr_blockwise_shift_scale constexpr_cast constexpr_lut_to_dense
constexpr_sparse_to_dense dequantize depth_to_space expand_dims identity pad pixel_shuffle pixel_unshuffle quantize
reshape slice_by_index slice_by_size space_to_depth split squeeze stack tile transpose
"""
_NATIVE = """
abs add avg_pool batch_norm ceil clip conv conv_transpose elu exp floor gelu instance_norm inverse l2_norm layer_norm
leaky_relu linear linear_activation log matmul max_pool maximum minimum mul pow prelu real_div reduce_l2_norm reduce_max
reduce_mean reduce_min reduce_sum relu relu6 resize resize_bilinear resize_nearest_neighbor round rsqrt
scaled_dot_product_attention scaled_tanh sigmoid sigmoid_hard silu softmax softplus softsign sqrt square sub tanh
thresholded_relu upsample_bilinear upsample_nearest_neighbor
"""
# Operators of MIL that move or retype data: nothing is computed there.
MOVES = frozenset(_MOVES.split())

_RUNS = frozenset(_NATIVE.split())
_NO_PATH = ("reduce_prod", "scatter", "scatter_along_axis", "scatter_nd", "lstm", "gru", "rnn")
_LAST = {"width": 16384, "height": 16384, "channel": 65536}
_WIDEST_KERNEL = 13
_WINDOWED = ("conv", "conv_transpose", "max_pool", "avg_pool")


def refused(kind: str, shapes: Sequence[Sequence[int]], kernel: Sequence[int] = ()) -> str:
    """Why an operator leaves the Neural Engine, with the source; empty where nothing known sends it away.

    Args:
        kind: As MIL names it, such as `conv`.
        shapes: Of the tensors that it reads and gives, weights excepted.
        kernel: Sizes of its window in space; none where it has no window.
    """
    rank = max((len(shape) for shape in shapes), default=0)
    if kind in _WINDOWED and rank == 5:
        return f"3-D {kind}: the engine's compiler takes 2-D ones alone ({_GUIDE}, chapter 4)"
    if rank > 4:
        return f"{kind} of rank {rank}: the engine's form is 4-D, channels first ({_APPLE}, principle 1)"
    if kind in _NO_PATH:
        return f"{kind}: no hardware for it in any engine ({_GUIDE}, chapter 4)"
    if kind.startswith("gather"):
        return f"{kind}: not on the engine (github.com/hollance/neural-engine, unsupported-layers)"
    if kind not in _RUNS:
        return f"{kind}: not among the operators known to run there ({_GUIDE}, chapter 4)"
    if kernel and max(kernel) > _WIDEST_KERNEL:
        return f"{kind}: a window of {max(kernel)}, and the widest is {_WIDEST_KERNEL} ({_GUIDE}, chapter 17)"
    for shape in shapes:
        if len(shape) != 4:
            continue
        for (axis, most), size in zip(_LAST.items(), (shape[3], shape[2], shape[1]), strict=True):
            if size > most:
                return f"{kind}: {axis} {size}, and the most is {most} ({_GUIDE}, chapter 17)"
    return ""
