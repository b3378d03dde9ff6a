"""From a model's outputs to a result, and from a result to a drawing and to JSON: a file a task, chosen here by `spec.task`.

Every result has a `label` (what is there, in words), a `score` (how sure, 0 to 1) and `rejected` (nothing known is there).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeattn.imaging import Picture
from edgeattn.spec import Spec, Task
from edgeattn.tasks import classify, detect
from edgeattn.tasks.classify import Classification
from edgeattn.tasks.detect import Detections

__all__ = [
    "FIGURES",
    "Classification",
    "Detections",
    "Figure",
    "Prediction",
    "agreeing",
    "decode",
    "draw",
    "parts",
    "told",
]

Prediction = Classification | Detections


class Figure(NamedTuple):
    """By what a model of a task is judged: 0 to 1, more is better."""

    key: str
    """In JSON."""
    name: str
    """In words."""


FIGURES: dict[Task, Figure] = {
    "classify": Figure("top1", "top-1"),
    "detect": Figure("map50", "mAP50"),
    "segment": Figure("miou", "mIoU"),
}


def decode(outputs: Mapping[str, NDArray[Any]], spec: Spec, size: tuple[int, int] | None = None) -> Prediction:
    """Turn an engine's outputs (batch of one) into the task's result.

    Args:
        outputs: by name.
        spec: the model's contract.
        size: height and width of the frame, for results that lie somewhere in it; None: that of the input.

    Raises:
        SpecError: the outputs do not fit the spec.
    """
    return classify.decode(outputs, spec) if spec.task == "classify" else detect.decode(outputs, spec, size)


def draw(picture: Picture, prediction: Prediction) -> Picture:
    """Draw a result over a copy of the frame, (H, W, 3) BGR bytes."""
    if isinstance(prediction, Detections):
        return detect.draw(picture, prediction)
    return classify.draw(picture, prediction)


def told(prediction: Prediction) -> dict[str, Any]:
    """A result as plain JSON values: a class, or a list of boxes."""
    if isinstance(prediction, Detections):
        return {"detections": detect.told(prediction)}
    return {"label": prediction.label, "score": round(prediction.score, 4), "rejected": prediction.rejected}


def parts(outputs: Mapping[str, NDArray[Any]], spec: Spec) -> dict[str, NDArray[Any]]:
    """Outputs (B, ...) by name, each with a range of its own: a detector's boxes, which are pixels, apart from its scores."""
    if spec.task != "detect":
        return dict(outputs)
    others = {name: values for name, values in outputs.items() if name != spec.output}
    return detect.parts(outputs[spec.output]) | others


def agreeing(given: NDArray[Any], wanted: NDArray[Any], spec: Spec) -> float:
    """Share of pictures on which two models' outputs (N, ...) say the same: the best class, or the boxes (see `detect.agree`)."""
    if spec.task == "classify":
        return float(np.mean(given.argmax(axis=1) == wanted.argmax(axis=1)))
    pairs = [
        [detect.decode({spec.output: rows[i : i + 1]}, spec) for rows in (given, wanted)] for i in range(len(wanted))
    ]
    return float(np.mean([detect.agree(*pair) for pair in pairs]))
