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
from edgeattn.nn.attention.cbam import CBAM
from edgeattn.nn.attention.coord import CoordinateAttention
from edgeattn.nn.attention.eca import EfficientChannelAttention
from edgeattn.nn.attention.se import SqueezeExcitation
from edgeattn.nn.named import resolve

ATTENTIONS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {
        "cbam": CBAM,
        "coord": CoordinateAttention,
        "eca": EfficientChannelAttention,
        "none": nn.Identity,
        "se": SqueezeExcitation,
    }
)
"""Name to class; `none` leaves the slot empty."""


def build_attention(name: str, channels: int) -> nn.Module:
    """Build the attention called `name`, or the class `package.module:Class`, for `channels` channels.

    Raises:
        NameNotFoundError: no such attention; the message lists the names and the nearest.
        SpecError: a class of your own that is no `nn.Module` or cannot be built from `channels` alone.
    """
    if name == "none":
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
