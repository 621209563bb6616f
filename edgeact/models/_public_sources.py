"""The layouts of public checkpoints: other repositories' names for our tensors, and how they prepare a video.

A source is a list of renames from our names to its own. Its values are those of the file named beside them; what a
`ClipSpec` cannot say of its preprocessing, its notes say.

                          first layer                      classifier         input
    csn    mmaction2      backbone.conv1.conv.weight       cls_head.fc_cls    RGB
           VMZ            stem.0.weight                    fc                 RGB
    mict   MiCT-Net-…     conv1.weight                     fc                 RGB
    c3d    mmaction2      backbone.conv1a.conv.weight      cls_head.fc_cls    RGB
           jfzhang95      conv1.weight                     fc8                BGR
           DavideA        conv1.weight                     fc8, 487 classes   BGR
"""

import re
from dataclasses import dataclass, replace

from edgeact.clip import ClipSpec

__all__ = ["SOURCES", "Source"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A repository's layout of one family; of `renames` the first whose pattern our name starts with is applied.

    `head` is our classifier's prefix, `classes` the only K it was published with, `bgr` our first BGR convolution.
    """

    name: str
    models: str
    renames: tuple[tuple[str, str], ...]
    head: str
    spec: ClipSpec
    bn_eps: float | None
    classes: int | None = None
    bgr: str | None = None
    notes: tuple[str, ...] = ()

    def theirs(self, ours: str) -> str:
        """Its name of our tensor `ours`."""
        for pattern, replacement in self.renames:
            name, hits = re.subn(rf"^{pattern}", replacement, ours, count=1)
            if hits:
                return name
        return ours


_IMAGENET = ClipSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_CSN_INPUT = replace(_IMAGENET, frames=32, frame_stride=2, short_side=256, crop_height=224, crop_width=224)
_BLOCK = r"(layer\d\.\d+\.)"
# mmaction/models/backbones/resnet3d_csn.py and resnet3d.py: ConvModules named conv and bn, conv2 always a Sequential.
_MMACTION_CSN_ENDS = (
    (r"fc\.", "cls_head.fc_cls."),  # mmaction/models/heads/i3d_head.py
    (r"conv1\.", "backbone.conv1.conv."),
    (r"bn1\.", "backbone.conv1.bn."),
    (_BLOCK + r"downsample\.0\.", r"backbone.\1downsample.conv."),
    (_BLOCK + r"downsample\.1\.", r"backbone.\1downsample.bn."),
    (_BLOCK + r"conv([13])\.", r"backbone.\1conv\2.conv."),
    (_BLOCK + r"bn([13])\.", r"backbone.\1conv\2.bn."),
)
_MMACTION_IR_CSN = Source(
    name="mmaction2",
    models=r"ir_csn_\d+",
    renames=(
        *_MMACTION_CSN_ENDS,
        (_BLOCK + r"conv2\.", r"backbone.\1conv2.0.conv."),
        (_BLOCK + r"bn2\.", r"backbone.\1conv2.0.bn."),
    ),
    head="fc.",
    # configs/recognition/csn/ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb.py, val_pipeline and
    # img_norm_cfg: 123.675, 116.28, 103.53 and 58.395, 57.12, 57.375
    spec=_CSN_INPUT,
    bn_eps=1e-3,  # norm_cfg of ResNet3dCSN, resnet3d_csn.py
    notes=(
        # configs/recognition/csn/ircsn_r152_32x2x1-180e_kinetics400-rgb.py: mean 110.2008, 100.63983, 95.99475
        "mmaction2's CSNs from scratch and from Sports-1M are normalised otherwise, which their weights do not tell: "
        "for those give --mean 0.43216,0.394666,0.37645 --std 0.22803,0.22145,0.216989",
    ),
)
_MMACTION_IP_CSN = replace(
    _MMACTION_IR_CSN,
    models=r"ip_csn_\d+",
    renames=(
        *_MMACTION_CSN_ENDS,
        (_BLOCK + r"conv2\.0\.", r"backbone.\1conv2.0.conv."),
        (_BLOCK + r"conv2\.1\.", r"backbone.\1conv2.0.bn."),
        (_BLOCK + r"conv2\.2\.", r"backbone.\1conv2.1.conv."),
        (_BLOCK + r"bn2\.", r"backbone.\1conv2.1.bn."),
    ),
)
_VMZ_CSN = Source(
    name="VMZ",
    models=r"i[rp]_csn_\d+",
    renames=(  # pt/vmz/models/csn.py and utils.py, upon torchvision's VideoResNet with Bottleneck
        (r"conv1\.", "stem.0."),
        (r"bn1\.", "stem.1."),
        (_BLOCK + r"conv(\d)\.", r"\1conv\2.0."),
        (_BLOCK + r"bn(\d)\.", r"\1conv\2.1."),
    ),
    head="fc.",
    # pt/vmz/func/test.py: frame_rate=15, mean and std; c2/tutorials/model_zoo.md: 32x224x224. No file of VMZ gives
    # the short side of the CSNs: 256 is that of mmaction2's test of the same weights.
    spec=replace(_CSN_INPUT, sample_fps=15.0, mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989)),
    bn_eps=1e-3,  # _generic_resnet, pt/vmz/models/utils.py
)
_MICT = Source(
    name="MiCT-Net-PyTorch",
    models=r"mict_resnet_\d+",
    renames=(),  # mictnet/models/mictresnet.py
    head="fc.",
    # README.md: 16 frames, 256x192, crop 160; mictnet/datasets/ucf101.py: every frame; experiments/…/test.py: mean, std
    spec=replace(_IMAGENET, frames=16, frame_stride=1, short_side=192, crop_height=160, crop_width=160),
    bn_eps=1e-5,  # PyTorch's default, mictresnet.py
    notes=(
        "v1 and v2 have the same tensors and other temporal strides: --option version= must be that of the training",
        "MiCT-Net-PyTorch tests on the first 16 frames, edgeact on the middle ones",
    ),
)
_STRETCH = "the source stretches frames to 171x128, edgeact keeps their aspect ratio (equal for 4:3 videos)"


def _levels(red: float, green: float, blue: float) -> ClipSpec:
    """C3D's input: 16 frames of 112 x 112, values 0..255 less a mean, not scaled."""
    mean, std = (red / 255, green / 255, blue / 255), (1 / 255, 1 / 255, 1 / 255)
    return ClipSpec(frames=16, frame_stride=1, short_side=128, crop_height=112, crop_width=112, mean=mean, std=std)


_MMACTION_C3D = Source(
    name="mmaction2",
    models="c3d",
    renames=(  # mmaction/models/backbones/c3d.py, heads/i3d_head.py
        (r"conv([12])\.", r"backbone.conv\1a.conv."),
        (r"conv(\d[ab])\.", r"backbone.conv\1.conv."),
        (r"fc([67])\.", r"backbone.fc\1."),
        (r"fc8\.", "cls_head.fc_cls."),
    ),
    head="fc8.",
    # configs/_base_/models/c3d_sports1m_pretrained.py: mean [104, 117, 128], std 1, on RGB frames (no to_rgb);
    # configs/recognition/c3d/c3d_sports1m-pretrained_8xb30-16x1x1-45e_ucf101-rgb.py: frames and sizes
    spec=_levels(104, 117, 128),
    bn_eps=None,
)
_JFZHANG95_C3D = Source(
    name="jfzhang95",
    models="c3d",
    renames=(),  # network/C3D_model.py
    head="fc8.",
    spec=_levels(102, 98, 90),  # inference.py: cv2's BGR less (90, 98, 102), every frame, 128 rows, crop 112
    bn_eps=None,
    bgr="conv1.weight",
    notes=(_STRETCH, "pytorch-video-recognition trains on every 4th frame (dataset.py) and infers on every frame"),
)
_DAVIDEA_C3D = Source(
    name="DavideA",
    models="c3d",
    renames=(),  # C3D_model.py
    head="fc8.",
    # predict.py feeds RGB without a mean ("tested only qualitatively"); the weights are Caffe's, which want BGR less
    # the mean of Sports-1M, (90.25, 97.66, 101.41) by channel: issues 1 and 4 of the repository, measured there
    spec=_levels(101.41, 97.66, 90.25),
    bn_eps=None,
    classes=487,
    bgr="conv1.weight",
    notes=(_STRETCH, "prepared as Caffe's C3D (BGR less a mean), not as c3d-pytorch's predict.py (RGB, no mean)"),
)
SOURCES = (_MMACTION_IR_CSN, _MMACTION_IP_CSN, _VMZ_CSN, _MICT, _MMACTION_C3D, _JFZHANG95_C3D, _DAVIDEA_C3D)
