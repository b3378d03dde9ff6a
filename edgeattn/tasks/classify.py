"""Classification: logits to a label with its probability, or to `none of these`; and the bars drawn for it.

Legend of shapes: K classes. Where the model has an output for "none" itself, its logits are K + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import SpecError
from edgeattn.imaging import Picture
from edgeattn.spec import Spec
from edgeattn.tasks import drawing

SHOWN = 3
"""Most classes that are drawn."""


@dataclass(frozen=True)
class Classification:
    """What a classifier answers for one frame."""

    label: str
    """Name of the class, or the spec's `none of these`."""
    index: int
    """Place of the class in `labels`; -1 when rejected."""
    score: float
    """Probability of the answer, 0 to 1: of the class, or when rejected that it is none of them."""
    probabilities: NDArray[np.float64]
    """(K,) probabilities of the classes; their sum is below 1 by the probability of the output for "none"."""
    rejected: bool
    """True when the answer is none of the classes."""
    labels: tuple[str, ...]
    """Names of the classes, in the order of `probabilities`."""


def decode(outputs: Mapping[str, NDArray[Any]], spec: Spec) -> Classification:
    """Turn logits of shape (1, K) or, with an output for "none", (1, K + 1) into a result.

    Raises:
        SpecError: the output is missing, or its size does not fit the labels.
    """
    if spec.output not in outputs:
        raise SpecError(f"the model gives no output '{spec.output}' but {', '.join(outputs)}; export it again")
    logits = np.asarray(outputs[spec.output], np.float64).reshape(-1)
    none_index = spec.rejection.index if spec.rejection else None
    expected = len(spec.labels) + (none_index is not None)
    if logits.size != expected:
        raise SpecError(f"output '{spec.output}' holds {logits.size} logits; the spec's labels ask for {expected}")
    exponentials = np.exp(logits - logits.max())
    everything = exponentials / exponentials.sum()
    return answer(everything if none_index is None else np.delete(everything, none_index), spec)


def answer(probabilities: NDArray[np.float64], spec: Spec) -> Classification:
    """The answer that class probabilities (K,) give: the best class, unless "none" beats it (see `scores`)."""
    return with_index(probabilities, int(np.argmax(scores(probabilities, spec))), spec)


def scores(probabilities: NDArray[np.float64], spec: Spec) -> NDArray[np.float64]:
    """(K + 1,): the classes' probabilities, then what "none of these" holds against them; the greatest is the answer.

    "None" holds the rejection's threshold, or the probability of its own output where that is more; without a rejection
    it never wins.
    """
    if spec.rejection is None:
        return np.append(probabilities, -np.inf)
    own = 1.0 - probabilities.sum() if spec.rejection.index is not None else 0.0
    # A class at the threshold itself is accepted: argmax takes the first of equals.
    return np.append(probabilities, max(spec.rejection.threshold, own))


def with_index(probabilities: NDArray[np.float64], index: int, spec: Spec) -> Classification:
    """The result that names class `index`; K stands for "none of these"."""
    if spec.rejection is not None and index == len(spec.labels):
        score = 1.0 - float(probabilities.max())
        return Classification(spec.rejection.label, -1, score, probabilities, True, spec.labels)
    return Classification(spec.labels[index], index, float(probabilities[index]), probabilities, False, spec.labels)


def draw(picture: Picture, prediction: Classification) -> Picture:
    """Draw the answer and the likeliest other classes as bars at the foot of a copy of the picture, (H, W, 3) BGR.

    A picture too small for all the bars gets the answer alone.
    """
    canvas = picture.copy()
    height, width = canvas.shape[:2]
    capital = drawing.capital_px(canvas)
    room = SHOWN - 1 if height >= 20 * capital else 0
    likely = [int(i) for i in np.argsort(-prediction.probabilities, kind="stable")]
    others = [i for i in likely if i != prediction.index][:room]
    tall, low = round(2.5 * capital), round(1.6 * capital)
    top = height - tall - low * len(others)
    drawing.shade(canvas, (0, top, width, height - top))
    _bar(
        canvas, (top, tall), prediction.label, prediction.score, drawing.GREY if prediction.rejected else drawing.GREEN
    )
    for place, i in enumerate(others):
        rows = (top + tall + place * low, low)
        _bar(canvas, rows, prediction.labels[i], float(prediction.probabilities[i]), None)
    return canvas


def _bar(canvas: Picture, rows: tuple[int, int], label: str, score: float, colour: drawing.Colour | None) -> None:
    """A bar as long as the score over `rows` (top, height), the label at its left, percent at its right."""
    top, tall = rows
    width, capital, ink = canvas.shape[1], 0.5 * tall, drawing.WHITE if colour else drawing.SILVER
    opacity = 0.75 if colour else 0.45
    drawing.shade(canvas, (0, top, round(width * score), tall), colour or drawing.GREY, opacity)
    percent = f"{100 * score:.0f} %"
    percent_px, edge, baseline = drawing.text_width(percent, capital), tall // 4, top + round(0.75 * tall)
    label = drawing.shorten(label, capital, width - percent_px - 3 * edge)
    drawing.write(canvas, label, (edge, baseline), capital, ink)
    drawing.write(canvas, percent, (width - edge - percent_px, baseline), capital, ink)
