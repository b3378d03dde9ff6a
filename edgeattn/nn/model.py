"""Models: a backbone with a head, built by name or by a factory of the user's own."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from edgeattn.errors import SpecError
from edgeattn.nn.backbone import SIZES, EdgeMeta
from edgeattn.nn.heads import ClassificationHead
from edgeattn.nn.named import resolve
from edgeattn.nn.pretrained import PRETRAINED


class Classifier(nn.Module):
    """EdgeMeta with a classification head: (B, 3, H, W), normalised by (x - 128) / 128, -> logits (B, K)."""

    def __init__(
        self, classes: int, *, size: str = "pico", attention: str = "none", imgsz: int = 96, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.backbone = EdgeMeta(size, attention, imgsz=imgsz)
        self.head = ClassificationHead(self.backbone.channels, classes, dropout=dropout)
        self.attention = attention

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.head(self.backbone(x_BCHW))  # type: ignore[no-any-return]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, K), and the map (B, h, w) of every attention block by its path; no maps without attention."""
        if not self.backbone.has_maps:
            return self(x_BCHW), {}
        features_BCHW, maps = self.backbone.attend(x_BCHW)
        return self.head(features_BCHW), maps

    def deployed(self) -> Classifier:
        """A copy in eval mode with everything folded that folds exactly."""
        twin = copy.deepcopy(self).cpu().eval()
        twin.backbone.deploy()
        return twin


def build_model(
    name: str, classes: int, *, attention: str = "none", imgsz: int = 96, dropout: float = 0.0
) -> nn.Module:
    """Build a model: a size of EdgeMeta, a pretrained net, or a factory `package.module:function`, called as `f(classes)`.

    Raises:
        NameNotFoundError: no such model.
        SpecError: the factory builds no `nn.Module`.
    """
    if name in SIZES:
        return Classifier(classes, size=name, attention=attention, imgsz=imgsz, dropout=dropout)
    model = resolve("model", name, {**dict.fromkeys(SIZES, Classifier), **PRETRAINED})(classes)
    if not isinstance(model, nn.Module):
        raise SpecError(f"model '{name}' builds a {type(model).__name__}; it must be a torch.nn.Module")
    return model
