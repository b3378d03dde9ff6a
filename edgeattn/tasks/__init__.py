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
from edgeattn.tasks import classify, detect, segment
from edgeattn.tasks.classify import Classification
from edgeattn.tasks.detect import Detections
from edgeattn.tasks.segment import Regions

__all__ = [
    "FIGURES",
    "Classification",
    "Detections",
    "Figure",
    "Prediction",
    "Regions",
    "agreeing",
    "decode",
    "draw",
    "parts",
    "same",
    "told",
]

Prediction = Classification | Detections | Regions


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
    if spec.task == "classify":
        return classify.decode(outputs, spec)
    if spec.task == "detect":
        return detect.decode(outputs, spec, size)
    return segment.decode(outputs, spec, size)


def draw(picture: Picture, prediction: Prediction, opacity: float = 0.5) -> Picture:
    """Draw a result over a copy of the frame, (H, W, 3) BGR bytes; `opacity`: of a segmenter's colours, 0 to 1."""
    if isinstance(prediction, Detections):
        return detect.draw(picture, prediction)
    if isinstance(prediction, Regions):
        return segment.draw(picture, prediction, opacity)
    return classify.draw(picture, prediction)


def told(prediction: Prediction) -> dict[str, Any]:
    """A result as plain JSON values: a class, a list of boxes, or one of classes with their share of the frame."""
    if isinstance(prediction, Detections):
        return {"detections": detect.told(prediction)}
    if isinstance(prediction, Regions):
        return {"regions": segment.told(prediction)}
    return {"label": prediction.label, "score": round(prediction.score, 4), "rejected": prediction.rejected}


def same(given: Prediction, wanted: Prediction) -> bool:
    """Whether two results for one frame say the same: by their label, of regions nearly every pixel (see `segment.agree`)."""
    if isinstance(given, Regions) and isinstance(wanted, Regions):
        return segment.agree(given, wanted)
    return given.label == wanted.label


def parts(outputs: Mapping[str, NDArray[Any]], spec: Spec) -> dict[str, NDArray[Any]]:
    """Outputs (B, ...) by name, each with a range of its own: a detector's boxes, which are pixels, apart from its scores."""
    if spec.task != "detect":
        return dict(outputs)
    return detect.parts(outputs, spec)


def agreeing(given: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]], spec: Spec) -> float:
    """Share of pictures on which two models' outputs (N, ...) say the same: the best class, or see the task's `agree`."""
    if spec.task == "classify":
        return float(np.mean(given[spec.output].argmax(axis=1) == wanted[spec.output].argmax(axis=1)))
    task: Any = detect if spec.task == "detect" else segment
    pairs = [
        [task.decode({name: rows[i : i + 1] for name, rows in outputs.items()}, spec) for outputs in (given, wanted)]
        for i in range(len(wanted[spec.output]))
    ]
    return float(np.mean([task.agree(*pair) for pair in pairs]))
