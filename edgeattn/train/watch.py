"""What loss terms look at of a model: its answer, its attention maps, its last features; in float32, however the net computes.

Legend of shapes: B batch, K classes, C channels, H W features, h w an attention map.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.model import Net


class Seen(NamedTuple):
    """What a model gave for a batch."""

    answer: Any
    """The answer: a classifier's logits (B, K), another net's whatever its head gives."""
    maps: dict[str, Tensor]
    """Raw maps (B, h, w) by the path of their block; empty where nobody asked."""
    features: Tensor | None
    """The last features before pooling, (B, C, H, W); None where nobody asked."""


def exactly(like: Tensor) -> torch.autocast:
    """No autocast on the device of `like`: losses cancel, and take logarithms near 0 and 1, for which bf16 is too coarse."""
    return torch.autocast(like.device.type, enabled=False)


def watch(model: nn.Module, x_BCHW: Tensor, *, maps: bool = False, features: bool = False) -> Seen:
    """Run a model, in autocast where that is on, and keep what is asked for in float32.

    A foreign model gives features where it follows timm's convention (`forward_features`, `forward_head`), and maps where
    it has `attend(x) -> logits, {path: map}`.

    Raises:
        SpecError: it cannot give what is asked for.
    """
    return convert_to_fp32(_watch(model, x_BCHW, maps=maps, features=features))  # type: ignore[no-any-return]


def _watch(model: nn.Module, x_BCHW: Tensor, *, maps: bool, features: bool) -> Seen:
    if isinstance(model, Net) and (maps or features):
        return Seen(*model.watch(x_BCHW, maps=maps))
    if maps:
        if not hasattr(model, "attend"):
            raise SpecError(f"{type(model).__name__} gives no attention maps; it needs attend(x) -> logits, maps")
        logits_BK, found = model.attend(x_BCHW)  # type: ignore[operator]
        return Seen(logits_BK, found, _watch(model, x_BCHW, maps=False, features=True).features if features else None)
    if features:
        if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
            raise SpecError(
                f"{type(model).__name__} gives no features; it needs forward_features and forward_head, as timm's models "
                "have, or distil from its answers: kd, dkd or dist"
            )
        features_BCHW = model.forward_features(x_BCHW)  # type: ignore[operator]
        return Seen(model.forward_head(features_BCHW), {}, features_BCHW)  # type: ignore[operator]
    return Seen(model(x_BCHW), {}, None)
