"""Detection: a detector's output to boxes in the frame, and the boxes drawn there.

Legend of shapes: K classes, A places that each propose a box, N boxes. A detector gives one of two forms:
(1, 4 + K, A), boxes as centre, width and height in pixels of the input above scores of 0 to 1, many for each thing; or
(1, N, 6), corners, score and class, one for each thing. It is the second where the last dimension is 6. A detector that gives
masks too has P numbers more for each box, the weights of its prototypes (see `tasks.instances`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.errors import ExtraMissingError, SpecError
from edgeattn.imaging import Picture, seen_box
from edgeattn.spec import Spec, Thresholds
from edgeattn.tasks import drawing
from edgeattn.tasks.instances import Instances, mixed, shade

NOTHING = "nothing"
"""What a frame without boxes is called."""
PARTNERS, OVERLAP = 0.9, 0.5
"""Two answers are the same where this share of their boxes have a partner of their class that overlaps them so far."""
_COLOURS: tuple[drawing.Colour, ...] = (
    (88, 166, 58), (201, 121, 43), (44, 92, 214), (160, 82, 160), (30, 150, 190), (110, 110, 30), (90, 70, 190), (60, 110, 130)
)  # fmt: skip


@dataclass(frozen=True)
class Detections:
    """What a detector finds in one frame, the best first."""

    boxes: NDArray[np.float32]
    """(N, 4) left, upper, right, lower edge in pixels of the frame, inside of it and with an area."""
    scores: NDArray[np.float32]
    """(N,) 0 to 1."""
    indices: NDArray[np.int64]
    """(N,) places of the classes in `labels`."""
    labels: tuple[str, ...]
    """Names of the classes."""
    masks: Instances | None = None
    """Where each thing is seen; None: the model gives boxes alone."""
    tracks: NDArray[np.int64] | None = None
    """(N,) number of the thing that each box shows, the same from frame to frame; -1: not known yet. None: nobody tracks."""

    @property
    def names(self) -> list[str]:
        """The class of each box."""
        return [self.labels[i] for i in self.indices]

    @property
    def label(self) -> str:
        """The kinds of things that are there, in the order of the classes, as in `cat, dog`; or `NOTHING`."""
        return ", ".join(self.labels[i] for i in np.unique(self.indices)) or NOTHING

    @property
    def score(self) -> float:
        """The best score; 0 where nothing is there."""
        return float(self.scores[0]) if len(self.scores) else 0.0

    @property
    def rejected(self) -> bool:
        """Nothing is there."""
        return not len(self.scores)

    def chosen(self, kept: NDArray[np.bool_]) -> Detections:
        """Those of the boxes for which `kept` (N,) is true."""
        return Detections(
            self.boxes[kept],
            self.scores[kept],
            self.indices[kept],
            self.labels,
            self.masks.chosen(np.flatnonzero(kept)) if self.masks else None,
            self.tracks[kept] if self.tracks is not None else None,
        )

    def supervision(self) -> Any:
        """The same as a `supervision.Detections`, for that package's trackers, zones and annotators.

        Raises:
            ExtraMissingError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ExtraMissingError("supervision", "supervision", "handing detections over to supervision") from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.indices,
            mask=self.masks.whole() if self.masks else None,
            tracker_id=self.tracks,
            data={"class_name": np.array(self.names, str)},
        )


def decode(outputs: Mapping[str, NDArray[Any]], spec: Spec, size: tuple[int, int] | None = None) -> Detections:
    """Turn a detector's output into boxes.

    Args:
        outputs: the engine's, of one frame.
        spec: the model's contract.
        size: height and width of the frame that they lie in; None: it was of the input's own size.

    Raises:
        SpecError: the output is missing, or its shape does not fit the labels.
    """
    if spec.output not in outputs:
        raise SpecError(f"the model gives no output '{spec.output}' but {', '.join(outputs)}; export it again")
    given, kept = np.asarray(outputs[spec.output]), spec.thresholds or Thresholds()
    classes = len(spec.labels)
    more = _weights(outputs, spec)
    if given.ndim == 3 and given.shape[2] == 6 + more:
        boxes, scores, indices, weights = _told(given[0], kept.confidence)
    elif given.ndim == 3 and given.shape[1] == 4 + classes + more:
        boxes, scores, indices, weights = _proposed(given[0], classes, kept)
    else:
        raise SpecError(
            f"output '{spec.output}' has the shape {given.shape}; {classes} labels ask for "
            f"(1, {4 + classes + more}, places) or (1, N, {6 + more})"
        )
    if len(indices) and not 0 <= indices.min() <= indices.max() < classes:
        raise SpecError(f"output '{spec.output}' names class {indices.max()}, and there are {classes} labels")
    boxes, scores, indices, weights = (
        boxes[: kept.most],
        scores[: kept.most],
        indices[: kept.most],
        weights[: kept.most],
    )
    height, width = size or (spec.input.height, spec.input.width)
    x, y, across, down = seen_box(height, width, spec.input)
    scale, start = (across / spec.input.width, down / spec.input.height), (x, y)
    boxes = boxes * np.array(scale * 2, np.float32) + np.array(start * 2, np.float32)
    boxes = np.clip(boxes, 0.0, np.array([width, height] * 2, np.float32))
    seen = (boxes[:, 2:] > boxes[:, :2]).all(1)  # the rest lies outside of the frame
    boxes = boxes[seen]
    masks = None
    if spec.prototypes:
        masks = mixed(boxes, weights[seen], np.asarray(outputs[spec.prototypes][0]), spec.input, (height, width))
    return Detections(boxes, scores[seen], indices[seen], spec.labels, masks)


_Rows = tuple[NDArray[Any], NDArray[Any], NDArray[np.int64], NDArray[Any]]
"""Corners (N, 4), scores (N,), classes (N,) and weights of prototypes (N, P)."""


def _told(rows: NDArray[Any], confidence: float) -> _Rows:
    """Boxes of the form (N, 6 + P)."""
    rows = rows[(rows[:, 4] > confidence) & np.isfinite(rows).all(1)]
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    return rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64), rows[:, 6:]


def _proposed(columns: NDArray[Any], classes: int, kept: Thresholds) -> _Rows:
    """Boxes of the form (4 + K + P, A): each place's best class, and of each thing the best box."""
    places = np.flatnonzero(columns[4 : 4 + classes].max(0) > kept.confidence)  # few: all else is done for them alone
    taken = columns[:, places]
    taken = taken[:, np.isfinite(taken).all(0)]
    weights = taken[4 + classes :].T
    if not taken.size:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), weights
    indices = taken[4 : 4 + classes].argmax(0)
    scores = taken[4 : 4 + classes].max(0)
    half = taken[2:4] / 2
    corners = np.concatenate([taken[:2] - half, taken[:2] + half]).T
    if kept.iou == 1.0:
        best = np.argsort(-scores, kind="stable")
        return corners[best], scores[best], indices[best], weights[best]
    sized: Any = np.concatenate([taken[:2] - half, taken[2:4]]).T.astype(np.float64)
    sized[:, :2] -= sized[:, :2].min(0)  # OpenCV keeps classes apart by an offset, which wants coordinates above 0
    best = np.asarray(cv2.dnn.NMSBoxesBatched(sized, scores, indices, 0.0, kept.iou), np.int64).reshape(-1)
    best = best[np.argsort(-scores[best], kind="stable")]
    return corners[best], scores[best], indices[best], weights[best]


def parts(outputs: Mapping[str, NDArray[Any]], spec: Spec) -> dict[str, NDArray[Any]]:
    """What of outputs (B, ...) is compared apart: boxes, which are pixels, scores, and weights of masks.

    Of the form (B, N, 6) scores alone: boxes of about the same score may stand in another order.
    """
    given, classes = outputs[spec.output], len(spec.labels)
    others = {name: values for name, values in outputs.items() if name != spec.output}
    if given.shape[2] == 6 + _weights(outputs, spec):
        return {"scores": given[..., 4]} | others
    found = {"boxes": given[:, :4], "scores": given[:, 4 : 4 + classes], "weights": given[:, 4 + classes :]}
    return {name: values for name, values in found.items() if values.size} | others


def _weights(outputs: Mapping[str, NDArray[Any]], spec: Spec) -> int:
    """How many prototypes of masks each box weighs.

    Raises:
        SpecError: the output with the prototypes is missing.
    """
    if not spec.prototypes:
        return 0
    if spec.prototypes not in outputs or outputs[spec.prototypes].ndim != 4:
        raise SpecError(f"the model gives no prototypes '{spec.prototypes}' of masks; import it again")
    return int(outputs[spec.prototypes].shape[1])


def agree(given: Detections, wanted: Detections) -> bool:
    """Whether both found the same: see `PARTNERS`."""
    found, least = _with_partner(given, wanted), PARTNERS * max(len(given.boxes), len(wanted.boxes))
    return found >= least


def _with_partner(given: Detections, wanted: Detections) -> int:
    """How many of the wanted boxes have a partner of their own."""
    overlaps = overlap(wanted.boxes, given.boxes)
    overlaps[wanted.indices[:, None] != given.indices] = 0.0
    found = 0
    for row in overlaps:  # the best first, as they stand
        if row.size and row.max() >= OVERLAP:
            overlaps[:, row.argmax()] = 0.0
            found += 1
    return found


def overlap(a_N4: NDArray[Any], b_M4: NDArray[Any]) -> NDArray[np.float64]:
    """(N, M): area of each two boxes' intersection over that of their union; 0 for two that are empty."""
    a, b = a_N4.astype(np.float64)[:, None], b_M4.astype(np.float64)[None]
    shared = np.maximum(0.0, np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).prod(-1)
    whole = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return np.asarray(np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0))


def told(found: Detections) -> list[dict[str, Any]]:
    """Plain JSON values: a box each, in pixels of the frame."""
    rows: list[dict[str, Any]] = [
        {"label": name, "score": round(float(score), 4), "box": [round(float(edge), 1) for edge in box]}
        for name, score, box in zip(found.names, found.scores, found.boxes, strict=True)
    ]
    for row, track in zip(rows, found.tracks if found.tracks is not None else (), strict=False):
        row["track"] = int(track)
    for row, patch in zip(rows, found.masks or (), strict=False):
        row["outlines"] = patch.outlines()
    return rows


def draw(picture: Picture, found: Detections) -> Picture:
    """Draw each box with its label and score on a copy of the picture, (H, W, 3) BGR, the best above the others.

    Scores that are not numbers are left out, as those of the truth.
    """
    canvas = picture.copy()
    capital = 0.8 * drawing.capital_px(canvas)
    line = max(1, round(capital / 5))
    for index, patch in zip(found.indices[::-1], reversed(list(found.masks or ())), strict=False):
        shade(canvas, patch, _COLOURS[index % len(_COLOURS)])
    for i in reversed(range(len(found.boxes))):
        left, top, right, low = (round(float(edge)) for edge in found.boxes[i])
        index = int(found.indices[i])
        colour = _COLOURS[index % len(_COLOURS)]
        cv2.rectangle(canvas, (left, top), (right, low), colour, line)
        track = f"#{found.tracks[i]} " if found.tracks is not None and found.tracks[i] >= 0 else ""
        sure = f" {100 * found.scores[i]:.0f} %" if np.isfinite(found.scores[i]) else ""
        _tag(canvas, (left, top), track + found.labels[index] + sure, capital, colour)
    return canvas


def _tag(canvas: Picture, at: tuple[int, int], text: str, capital: float, colour: drawing.Colour) -> None:
    """Words above a box's upper left corner (x, y), or inside of it where there is no room; kept inside the picture."""
    tall, edge = round(2 * capital), round(0.4 * capital)
    text = drawing.shorten(text, capital, canvas.shape[1] - 2 * edge)
    wide = drawing.text_width(text, capital) + 2 * edge
    left = max(0, min(at[0], canvas.shape[1] - wide))
    top = at[1] - tall if at[1] >= tall else at[1]
    drawing.shade(canvas, (left, top, wide, tall), colour, 0.85)
    drawing.write(canvas, text, (left + edge, top + round(1.5 * capital)), capital)
