"""Models: a backbone with a head, built by name or by a factory of the user's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from edgeattn.errors import NameNotFoundError, SpecError
from edgeattn.nn.backbone import SIZES, Backbone, EdgeMeta
from edgeattn.nn.cost import PLAIN, equal_cost
from edgeattn.nn.heads import ClassificationHead
from edgeattn.nn.lite import Lite
from edgeattn.nn.named import resolve
from edgeattn.nn.pretrained import PRETRAINED, TIMM, Timm
from edgeattn.nn.resnet import ResNet20

LITE = "lite"
"""The backbone that starts from ImageNet weights."""
OTHERS: dict[str, Callable[..., Backbone]] = {LITE: Lite, "resnet20": ResNet20}
"""Backbones beside EdgeMeta's sizes; called as `f(attention, imgsz=...)`."""


class Net(nn.Module):
    """A backbone with a task's head: (B, 3, H, W), normalised by (x - 128) / 128, -> what the head answers.

    The head is called with the features of every stage; one with attention of its own has `attend`, as the backbone has.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, attention: str) -> None:
        """Put them together; `attention` is the name of what fills the slots."""
        super().__init__()
        self.backbone, self.head, self.attention = backbone, head, attention

    def forward(self, x_BCHW: Tensor) -> Any:
        """The head's answer."""
        return self.head(self.backbone.pyramid(x_BCHW))

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, C, h, w) of the last stage; named as timm's models name it."""
        return self.backbone(x_BCHW)  # type: ignore[no-any-return]

    def attend(self, x_BCHW: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """The answer, and the map (B, h, w) of every attention block by its path; no maps without attention."""
        answer, maps, _ = self.watch(x_BCHW)
        return answer, maps

    def watch(self, x_BCHW: Tensor, *, maps: bool = True) -> tuple[Any, dict[str, Tensor], Tensor]:
        """As `attend`, with the features of the last stage; without `maps` none are made."""
        found: dict[str, Tensor] = {}
        if maps and self.backbone.has_maps:
            stages, found = self.backbone.attend(x_BCHW)
        else:
            stages = self.backbone.pyramid(x_BCHW)
        if not maps or not hasattr(self.head, "attend"):
            return self.head(stages), found, stages[-1]
        answer, more = self.head.attend(stages)  # type: ignore[operator]
        return answer, found | more, stages[-1]

    def deployed(self) -> Net:
        """A copy in eval mode with everything folded that folds exactly."""
        twin = copy.deepcopy(self).cpu().eval()
        twin.backbone.deploy()
        if hasattr(twin.head, "deploy"):
            twin.head.deploy()  # type: ignore[operator]
        return twin


class Classifier(Net):
    """Logits (B, K)."""

    def __init__(
        self,
        classes: int,
        *,
        size: str = "pico",
        attention: str = "none",
        imgsz: int = 96,
        dropout: float = 0.0,
        hidden: Sequence[int] | None = None,
    ) -> None:
        """Build it; `size` is one of EdgeMeta or of `OTHERS`, `hidden` as `EdgeMeta` takes it."""
        backbone = build_backbone(size, attention, imgsz=imgsz, hidden=hidden)
        super().__init__(backbone, ClassificationHead(backbone.channels, classes, dropout=dropout), attention)

    def forward_head(self, features_BChw: Tensor) -> Tensor:
        """Logits (B, K) of features."""
        return self.head((features_BChw,))  # type: ignore[no-any-return]


def build_backbone(name: str, attention: str, *, imgsz: int, hidden: Sequence[int] | None = None) -> Backbone:
    """Build a backbone: a size of EdgeMeta, `hidden` as it takes it, or one of `OTHERS`."""
    return (
        OTHERS[name](attention, imgsz=imgsz)
        if name in OTHERS
        else EdgeMeta(name, attention, imgsz=imgsz, hidden=hidden)
    )


def build_model(
    name: str,
    classes: int,
    *,
    attention: str = "none",
    imgsz: int = 96,
    dropout: float = 0.0,
    equal_cost_to: str = "",
) -> nn.Module:
    """Build a model by name: a size of EdgeMeta, `lite`, `resnet20`, a pretrained net, or a factory `package.module:function`.

    A factory is called as `f(classes)`. A model of timm, where it is installed, is `timm:NAME`, `timm:NAME@FILE` with the
    weights of a checkpoint, or `timm:NAME@pretrained`.

    With `equal_cost_to="plain"` the perceptrons give way until parameters and MACs are those of the net without attention.

    Raises:
        NameNotFoundError: no such model, or nothing to be equal to.
        SpecError: the factory builds no `nn.Module`; or the attention costs more than the perceptrons can give.
    """
    if name in OTHERS:
        if equal_cost_to:
            raise SpecError(
                f"equal_cost_to narrows EdgeMeta's perceptrons, of which {name} has none; take pico or nano"
            )
        return Classifier(classes, size=name, attention=attention, imgsz=imgsz, dropout=dropout)
    if name in SIZES:
        if equal_cost_to not in ("", PLAIN):
            raise NameNotFoundError("equal_cost_to", equal_cost_to, (PLAIN,))
        hidden = equal_cost(name, attention, imgsz) if equal_cost_to else None
        return Classifier(classes, size=name, attention=attention, imgsz=imgsz, dropout=dropout, hidden=hidden)
    if name.startswith(TIMM):
        return Timm(name.removeprefix(TIMM), classes)
    model = resolve("model", name, {**dict.fromkeys((*SIZES, *OTHERS), Classifier), **PRETRAINED})(classes)
    if not isinstance(model, nn.Module):
        raise SpecError(f"model '{name}' builds a {type(model).__name__}; it must be a torch.nn.Module")
    return model
