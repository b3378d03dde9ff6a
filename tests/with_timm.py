"""timm's layers, for comparison: an optional environment, in which torchvision's missing operators are declared first."""

from __future__ import annotations

from typing import Any

import pytest
import torch

_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def timm_module(name: str) -> Any:
    """The module `name` of timm; skips the test where timm is not installed."""
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            _OPERATORS.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    return pytest.importorskip(name)
