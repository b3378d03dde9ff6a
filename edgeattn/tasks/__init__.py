"""From a model's outputs to a result, and from a result to a drawing: a file a task, chosen here by `spec.task`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edgeattn.errors import SpecError
from edgeattn.imaging import Picture
from edgeattn.spec import Spec
from edgeattn.tasks import classify
from edgeattn.tasks.classify import Classification

__all__ = ["Classification", "Prediction", "decode", "draw"]

Prediction = Classification


def decode(outputs: Mapping[str, NDArray[Any]], spec: Spec) -> Prediction:
    """Turn an engine's outputs (batch of one) into the task's result.

    Raises:
        SpecError: the outputs do not fit the spec.
    """
    if spec.task == "classify":
        return classify.decode(outputs, spec)
    raise SpecError(f"task '{spec.task}' has no decoder in this version; update with: pip install --upgrade edgeattn")


def draw(picture: Picture, prediction: Prediction) -> Picture:
    """Draw a result over a copy of the frame, (H, W, 3) BGR bytes."""
    return classify.draw(picture, prediction)
