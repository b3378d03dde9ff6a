"""Attention mechanisms that keep the shape: `A(channels, *, ...) : (B, C, H, W) -> (B, C, H, W)`.

A mechanism a file. Besides `forward`, each has `attend(x) -> (y, map)` with its map (B, H, W), raw and non-negative, and
may have

* `deployed(channels) -> Module`, an exact form in eval mode that engines run faster,
* `first_stage`, the stage of the backbone (0 to 3) from which it is worth its cost; before, the slot stays empty,
* `check_map(height, width)`, which raises a `SpecError` for maps that it cannot work on.

A class of your own, named `package.module:Class`, needs only `forward`: without `attend` its map is the energy it passes on,
mean over channels of |A(x)|.

Legend of shapes: B batch, C channels, H W map; suffixes of variables carry them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention._parts import energy
from edgeattn.nn.attention.additive import AdditiveAttention, AdditiveNormed
from edgeattn.nn.attention.area import AreaAttention
from edgeattn.nn.attention.bam import BAM, BAMSequence
from edgeattn.nn.attention.cbam import CBAM
from edgeattn.nn.attention.cbam_lite import CBAMLite
from edgeattn.nn.attention.cbam_spatial import CBAMSpatial, CBAMSpatialLite
from edgeattn.nn.attention.coord import CoordinateAttention
from edgeattn.nn.attention.dfc import DecoupledFullyConnected
from edgeattn.nn.attention.dual import ChannelSpatial, ChannelThenSpatial
from edgeattn.nn.attention.dw5 import DepthwiseFive
from edgeattn.nn.attention.eca import EfficientChannelAttention
from edgeattn.nn.attention.ese import EffectiveSqueezeExcitation
from edgeattn.nn.attention.gather_excite import GatherExcite
from edgeattn.nn.attention.global_context import GlobalContext, GlobalContextSigmoid
from edgeattn.nn.attention.layerscale import LayerScale
from edgeattn.nn.attention.lka import LargeKernelAttention, LargeKernelStrips
from edgeattn.nn.attention.mhsa import MultiHeadReLUAttention, MultiHeadSelfAttention
from edgeattn.nn.attention.mqa import MobileMQA
from edgeattn.nn.attention.multiscale import MultiScaleSpatial
from edgeattn.nn.attention.nonlocal_ import NonLocal
from edgeattn.nn.attention.qkv import QueryKeyValue
from edgeattn.nn.attention.region import RegionAttention
from edgeattn.nn.attention.relu_linear import ReLULinearAttention, ReLULinearMean
from edgeattn.nn.attention.se import SqueezeExcitation
from edgeattn.nn.attention.separable import SeparableSelfAttention, SeparableSigmoid
from edgeattn.nn.attention.shsa import SingleHeadSelfAttention
from edgeattn.nn.attention.simam import SimAM
from edgeattn.nn.attention.sk import SelectiveKernel
from edgeattn.nn.attention.spatial import PointwiseSpatial
from edgeattn.nn.attention.srm import StyleRecalibration
from edgeattn.nn.attention.star import StarOperation
from edgeattn.nn.attention.triplet import TripletAttention
from edgeattn.nn.attention.xca import CrossCovarianceAttention
from edgeattn.nn.named import resolve

FAMILIES: Mapping[str, Mapping[str, type[nn.Module]]] = MappingProxyType(
    {
        "channel": {
            "eca": EfficientChannelAttention,
            "ese": EffectiveSqueezeExcitation,
            "se": SqueezeExcitation,
            "sk": SelectiveKernel,
            "srm": StyleRecalibration,
        },
        "spatial": {
            "cbam_spatial": CBAMSpatial,
            "cbam_spatial_lite": CBAMSpatialLite,
            "dfc": DecoupledFullyConnected,
            "gather_excite": GatherExcite,
            "multiscale": MultiScaleSpatial,
            "region": RegionAttention,
            "spatial": PointwiseSpatial,
        },
        "channel and spatial": {
            "bam": BAM,
            "bam_sequence": BAMSequence,
            "cbam": CBAM,
            "cbam_lite": CBAMLite,
            "channel_spatial": ChannelSpatial,
            "channel_then_spatial": ChannelThenSpatial,
            "coord": CoordinateAttention,
            "global_context": GlobalContext,
            "global_context_sigmoid": GlobalContextSigmoid,
            "simam": SimAM,
            "triplet": TripletAttention,
        },
        "token mixer": {
            "area": AreaAttention,
            "mhsa": MultiHeadSelfAttention,
            "mhsa_relu": MultiHeadReLUAttention,
            "mqa": MobileMQA,
            "nonlocal": NonLocal,
            "qkv": QueryKeyValue,
            "shsa": SingleHeadSelfAttention,
            "xca": CrossCovarianceAttention,
        },
        "linear": {
            "additive": AdditiveAttention,
            "additive_normed": AdditiveNormed,
            "relu_linear": ReLULinearAttention,
            "relu_linear_mean": ReLULinearMean,
            "separable": SeparableSelfAttention,
            "separable_sigmoid": SeparableSigmoid,
        },
        "large kernel": {
            "lka": LargeKernelAttention,
            "lka_strips": LargeKernelStrips,
            "star": StarOperation,
        },
        "control": {
            "dw5": DepthwiseFive,
            "layerscale": LayerScale,
            "none": nn.Identity,
            "wide": nn.Identity,
        },
    }
)
"""Family to name to class. `none` and `wide` leave the slot empty; with `wide` the backbone's perceptrons are wider."""
ATTENTIONS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {name: members[name] for members in FAMILIES.values() for name in members}
)
"""Name to class."""
EMPTY = ("none", "wide")
"""Names that leave the slot empty."""


def build_attention(name: str, channels: int) -> nn.Module:
    """Build the attention called `name`, or the class `package.module:Class`, for `channels` channels.

    Raises:
        NameNotFoundError: no such attention; the message lists the names and the nearest.
        SpecError: a class of your own that is no `nn.Module` or cannot be built from `channels` alone.
    """
    if name in EMPTY:
        return nn.Identity()
    built = resolve("attention", name, ATTENTIONS)(channels)
    if not isinstance(built, nn.Module):
        raise SpecError(f"attention '{name}' builds a {type(built).__name__}; it must be a torch.nn.Module")
    return built


def attend(attention: nn.Module, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Run an attention and give its output (B, C, H, W) together with its map (B, H, W)."""
    if hasattr(attention, "attend"):
        given: tuple[Tensor, Tensor] = attention.attend(x_BCHW)  # type: ignore[operator]
        return given
    y_BCHW = attention(x_BCHW)
    return y_BCHW, energy(y_BCHW)
