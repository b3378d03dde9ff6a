"""Ways to teach attention where to look, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from edgeattn.train.losses import map_binary_cross_entropy, map_cosine, map_cross_entropy, map_kl


@dataclass(frozen=True)
class Supervision:
    """One of them."""

    loss: Callable[[Tensor, Tensor], Tensor]
    """(raw maps (B, h, w), where to look (B, h, w)) to a scalar."""
    weight: float
    """Its weight beside the labels' loss, unless a recipe says otherwise."""
    gates_only: bool = False
    """Whether it compares values themselves, which must lie between 0 and 1."""


SUPERVISIONS = {
    "kl": Supervision(map_kl, 5.0),  # density maps: gaze, or any mask
    "ce": Supervision(map_cross_entropy, 5.0),  # masks and boxes; kl but for a constant
    "bce": Supervision(map_binary_cross_entropy, 0.5, gates_only=True),  # sigmoid gates against masks, place by place
    "cosine": Supervision(map_cosine, 0.5),  # maps and targets without a common scale
}
