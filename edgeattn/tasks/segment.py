"""Segmentation: a class for every pixel of the frame, and the classes laid over it in colours.

Legend of shapes: K classes, H W the frame, h w the net's answer: logits (1, K, h, w) that cover the whole input, whatever
their size. A pixel's class is the best of the logits, laid over the input bilinearly; what larger frames have between the
input's pixels is that of the nearest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.errors import ExtraMissingError, SpecError
from edgeattn.imaging import Picture, crop_box, letterbox
from edgeattn.spec import Spec
from edgeattn.tasks import drawing

IGNORE = 255
"""In a map of classes: not known, as beside the middle of the frame where the net sees no more."""
BACKGROUND = "background"
"""Name of a class that is nothing: neither told, nor coloured."""
NOTHING = "nothing"
"""What a frame of background alone is called."""
LEAST = 0.01
"""Share of the frame from which a class is told and drawn to be there; less of it is mostly a seam between others."""
SAME = 0.95
"""Two answers are the same where this share of their pixels are."""
_MIXED_AT_MOST = 0.5
"""Share of the cells with more than one class, above which logits are laid over all of them: then that takes less time."""
_PLACES = 1024
"""Places of the answer that its score is taken from, about."""


@dataclass(frozen=True)
class Regions:
    """What a segmenter sees in one frame."""

    class_map: NDArray[np.uint8]
    """(H, W): the place of each pixel's class in `labels`, or IGNORE."""
    shares: NDArray[np.float64]
    """(K,) share of the frame that each class takes, 0 to 1."""
    score: float
    """Mean probability of the best class, 0 to 1."""
    labels: tuple[str, ...]
    """Names of the classes."""

    @property
    def there(self) -> list[int]:
        """Places of the classes that take `LEAST` of the frame, other than background, the largest first."""
        order = np.argsort(-self.shares, kind="stable")
        return [int(k) for k in order if self.shares[k] >= LEAST and self.labels[k] != BACKGROUND]

    @property
    def label(self) -> str:
        """The classes that are there, in the order of the labels, as in `road, car`; or `NOTHING`."""
        return ", ".join(self.labels[k] for k in sorted(self.there)) or NOTHING

    @property
    def rejected(self) -> bool:
        """Nothing is there."""
        return not self.there

    def supervision(self) -> Any:
        """The same as a `supervision.Detections`, a mask for each class that is there.

        Raises:
            ExtraMissingError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ExtraMissingError("supervision", "supervision", "handing regions over to supervision") from error
        there = self.there
        masks = np.array([self.class_map == k for k in there], bool).reshape(-1, *self.class_map.shape)
        return supervision.Detections(
            xyxy=supervision.mask_to_xyxy(masks) if there else np.zeros((0, 4)),
            mask=masks,
            class_id=np.array(there, np.int64),
            data={"class_name": np.array([self.labels[k] for k in there], str)},
        )


def decode(outputs: Mapping[str, NDArray[Any]], spec: Spec, size: tuple[int, int] | None = None) -> Regions:
    """Turn a segmenter's logits into the class of every pixel.

    Args:
        outputs: the engine's, of one frame.
        spec: the model's contract.
        size: height and width of the frame; None: it was of the input's own size.

    Raises:
        SpecError: the output is missing, or its shape does not fit the labels.
    """
    if spec.output not in outputs:
        raise SpecError(f"the model gives no output '{spec.output}' but {', '.join(outputs)}; export it again")
    logits = np.asarray(outputs[spec.output])
    classes = len(spec.labels)
    if logits.ndim != 4 or logits.shape[:2] != (1, classes):
        raise SpecError(
            f"output '{spec.output}' has the shape {logits.shape}; {classes} labels ask for (1, {classes}, h, w)"
        )
    logits_Khw = logits[0].astype(np.float32, copy=False)
    height, width = size or (spec.input.height, spec.input.width)
    answer = best(logits_Khw, (spec.input.height, spec.input.width))
    if spec.input.fit == "letterbox":
        x, y, w, h = letterbox(height, width, spec.input)
        answer, of_frame = answer[y : y + h, x : x + w], 1.0
        class_map = _nearest(answer, height, width)
    else:
        x, y, w, h = crop_box(height, width, spec.input)
        of_frame = w * h / (width * height)
        class_map = np.full((height, width), IGNORE, np.uint8)
        class_map[y : y + h, x : x + w] = _nearest(answer, h, w)
    # Counted before the answer takes on the frame's size, which may be of many more pixels.
    pixels = cv2.calcHist([answer], [0], None, [classes], [0, classes]).ravel()
    shares = of_frame / answer.size * pixels.astype(np.float64)
    return Regions(class_map, shares, _score(logits_Khw), spec.labels)


def best(logits_Khw: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The class of every pixel of `size` (height, width): the first of the greatest logits, bilinear in between.

    Between four places of one class all pixels are of that class, since what is laid between them is a mean of theirs.
    So logits are laid only over the cells where classes meet, if they are few.
    """
    classes, rows, cols = logits_Khw.shape
    height, width = size
    tall, wide = height // rows, width // cols
    if (rows * tall, cols * wide) != size:
        return _best_everywhere(logits_Khw, size)
    first = _first_greatest(classes, lambda k, out: np.copyto(out, logits_Khw[k]), (rows, cols))
    # A cell lies between four places. What is beyond the edge is as what is at it.
    corner = cv2.copyMakeBorder(first, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    mixed = (corner[1:] != corner[:-1])[:, 1:] | (corner[:, 1:] != corner[:, :-1])[1:]
    mixed |= corner[:-1, :-1] != corner[1:, 1:]
    row, col = np.nonzero(mixed)
    if len(row) > _MIXED_AT_MOST * mixed.size:
        return _best_everywhere(logits_Khw, size)
    cells = np.repeat(np.repeat(corner[:-1, :-1], wide, axis=1), tall, axis=0)
    if len(row):
        places = np.pad(np.arange(rows * cols).reshape(rows, cols), 1, mode="edge").ravel()
        upper_left = row * (cols + 2) + col
        places_4M = places[upper_left + np.array([[0], [1], [cols + 2], [cols + 3]])]
        inside = _best_inside(np.take(logits_Khw.reshape(classes, -1), places_4M, axis=1), tall, wide)
        cells.reshape(rows + 1, tall, cols + 1, wide).transpose(0, 2, 1, 3)[row, col] = inside
    top, side = (tall + 1) // 2, (wide + 1) // 2
    return np.ascontiguousarray(cells[top : top + height, side : side + width])


def _best_inside(corners_K4M: NDArray[np.float32], tall: int, wide: int) -> NDArray[np.uint8]:
    """(M, tall, wide): the class of each pixel of M cells, by the logits at the corners, row by row."""
    down, across = ((np.arange(n) + (0.5 if n % 2 == 0 else 0.0)) / n for n in (tall, wide))
    ways_4S = np.kron([1 - down, down], [1 - across, across]).astype(np.float32)

    def lay(k: int, out: NDArray[np.float32]) -> None:
        np.matmul(corners_K4M[k].T, ways_4S, out=out)

    return _first_greatest(len(corners_K4M), lay, (corners_K4M.shape[2], tall * wide)).reshape(-1, tall, wide)


def _best_everywhere(logits_Khw: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = size

    def lay(k: int, laid: NDArray[np.float32]) -> None:
        cv2.resize(logits_Khw[k], (width, height), dst=laid, interpolation=cv2.INTER_LINEAR)

    return _first_greatest(len(logits_Khw), lay, size)


def _first_greatest(
    classes: int, lay: Callable[[int, NDArray[np.float32]], object], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Of what `lay(class, out)` writes, the class that is greatest at each place; the first of equals.

    Class by class in buffers that stay in the processor's cache: a tenth of the time of an argmax over all at once.
    """
    answer = np.zeros(size, np.uint8)
    greatest, one = (np.empty(size, np.float32) for _ in range(2))
    more, this = (np.empty(size, np.uint8) for _ in range(2))
    lay(0, greatest)
    for k in range(1, classes):
        lay(k, one)
        cv2.compare(one, greatest, cv2.CMP_GT, dst=more)
        cv2.max(greatest, one, dst=greatest)
        this.fill(k)
        cv2.copyTo(this, more, answer)
    return answer


def _nearest(answer: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if answer.shape == (height, width):
        return answer
    return np.asarray(cv2.resize(answer, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def _score(logits_Khw: NDArray[np.float32]) -> float:
    """Mean probability of the best class, over some of the places."""
    step = max(1, round((logits_Khw[0].size / _PLACES) ** 0.5))
    some = logits_Khw[:, step // 2 :: step, step // 2 :: step].reshape(len(logits_Khw), -1)
    return float((1.0 / np.exp(some - some.max(0)).sum(0)).mean(dtype=np.float64))


def agree(given: Regions, wanted: Regions) -> bool:
    """Whether both saw the same: see `SAME`."""
    return float((given.class_map == wanted.class_map).mean()) >= SAME


def told(seen: Regions) -> list[dict[str, Any]]:
    """Plain JSON values: each class that is there, the largest first, and its share of the frame."""
    return [{"label": seen.labels[k], "share": round(float(seen.shares[k]), 4)} for k in seen.there]


def draw(picture: Picture, seen: Regions, opacity: float = 0.5) -> Picture:
    """Lay the classes in their colours over a copy of the picture, (H, W, 3) BGR, with a legend of those that are there."""
    colours = cv2.applyColorMap(seen.class_map, _palette()[:, None])
    canvas = np.asarray(cv2.addWeighted(picture, 1.0 - opacity, colours, opacity, 0.0), np.uint8)
    plain = seen.class_map == IGNORE
    if BACKGROUND in seen.labels:
        plain |= seen.class_map == seen.labels.index(BACKGROUND)
    cv2.copyTo(picture, plain.astype(np.uint8), canvas)
    _legend(canvas, seen)
    return canvas


def _legend(canvas: Picture, seen: Regions) -> None:
    """A line for each class that is there, at the lower left; as many as there is room for beneath the figures."""
    capital = 0.8 * drawing.capital_px(canvas)
    row, edge = round(2 * capital), round(0.6 * capital)
    room = max(0, canvas.shape[0] - 4 * row) // row
    names = [(k, f"{seen.labels[k]} {100 * seen.shares[k]:.0f} %") for k in seen.there[:room]]
    names = [(k, drawing.shorten(name, capital, canvas.shape[1] - row - 2 * edge)) for k, name in names]
    if not names:
        return
    wide = max(drawing.text_width(name, capital) for _, name in names) + row + 2 * edge
    first = canvas.shape[0] - row * len(names) - edge
    drawing.shade(canvas, (0, first - edge, wide, canvas.shape[0]))
    for place, (k, name) in enumerate(names):
        top, side = first + place * row, round(1.2 * capital)
        blue, green, red = _palette()[k].tolist()
        drawing.shade(canvas, (edge, top, side, side), (blue, green, red), 1.0)
        drawing.write(canvas, name, (edge + row, top + round(1.1 * capital)), capital)


@functools.cache
def _palette() -> NDArray[np.uint8]:
    """(256, 3) BGR: hues a golden section apart, so that neighbouring classes differ, in three strengths."""
    k = np.arange(256)
    hue, full, light = (k * 0.618034 % 1.0) * 180, np.take([200, 150, 235], k % 3), np.take([215, 170, 250], k // 2 % 3)
    hsv = np.stack([hue, full, light], 1).astype(np.uint8)
    return np.asarray(cv2.cvtColor(hsv[:, None], cv2.COLOR_HSV2BGR)[:, 0], np.uint8)
