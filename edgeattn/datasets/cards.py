"""The built-in data set: handwritten digits printed on cards that lie, tilted and lit, over real photographs.

A stand-in for a machine without any data, rendered on the fly: a sample is made from (seed, part, index) alone. The
digits are scikit-learn's 8 x 8 ones (1,797 instances), the photographs those of `backgrounds`; digits and photographs
of training, validation and test are disjoint, whatever the seed. Each sample knows its class, its box and its mask.

Legend of shapes: S side of the picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.datasets.annotated import BACKGROUND, Boxes, ClassMap, Indices
from edgeattn.datasets.backgrounds import PARTS, Part, check_part, photograph_crop, random_background
from edgeattn.datasets.backgrounds import attributions as photograph_attributions
from edgeattn.datasets.painting import (
    LABELS,
    Card,
    Light,
    Matrix,
    corners,
    develop,
    draw_card,
    draw_light,
    grain,
    hold,
    paint,
    project,
    scaled,
)
from edgeattn.errors import DataError
from edgeattn.imaging import Picture


@dataclass(frozen=True)
class CardSample:
    """One rendered card."""

    picture: Picture
    """(S, S, 3) BGR bytes."""
    label: int
    """The digit, which is also its place in `LABELS`."""
    box: tuple[float, float, float, float]
    """The card's left, top, right and bottom, in pixels, within the picture."""
    mask: NDArray[np.bool_]
    """(S, S): where the card is seen."""

    @property
    def boxes(self) -> Boxes:
        """(1, 4): the card's box, as `Annotated` has them."""
        return np.array([self.box], np.float32)

    @property
    def labels(self) -> Indices:
        """(1,): the digit."""
        return np.array([self.label])

    @property
    def crowd(self) -> NDArray[np.bool_]:
        """(1,): no crowd."""
        return np.zeros(1, bool)

    def class_map(self) -> ClassMap:
        """The class of every pixel, (S, S): 0 the background, else 1 + the digit; `Cards.map_names` names them."""
        return np.where(self.mask, self.label + 1, 0).astype(np.uint8)


def _random_pose(card: Card, size: int, rng: np.random.Generator) -> Matrix:
    """Anywhere in the picture, its height 45 to 95 % of the picture's, turned by up to 25 degrees and tilted."""
    angle = math.radians(min(25.0, max(-25.0, rng.normal(0, 11))))
    pose = hold(angle, (rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)))
    outline = project(pose, corners(card))
    low, high = outline.min(axis=0), outline.max(axis=0)
    scale = min(rng.uniform(0.45, 0.95), 1.02 / (high - low).max()) * size
    slack = size - (high - low) * scale
    return scaled(pose, scale, rng.uniform(0, 1, 2) * slack - low * scale)


class Cards:
    """Samples of one part, each made anew from (seed, part, index); about half a millisecond each at 96 x 96."""

    labels = LABELS
    map_names = (BACKGROUND, *LABELS)

    def __init__(self, part: Part, *, seed: int = 0, size: int = 96) -> None:
        if size < 16:
            raise DataError(f"cards of {size} x {size} pixels are too small to read; take 16 at least")
        self.part, self.seed, self.size = check_part(part), seed, size

    def sample(self, index: int) -> CardSample:
        """Render a sample; its label is `index % 10`.

        Raises:
            ExtraMissingError: scikit-learn or scikit-image is not installed.
        """
        rng = np.random.default_rng((self.seed, PARTS.index(self.part), index))
        label = index % len(LABELS)
        return render(draw_card(self.part, label, rng), label, self.part, self.size, rng)


def render(card: Card, label: int, part: Part, size: int, rng: np.random.Generator) -> CardSample:
    """Render a card in a random pose and light over a random background of a part."""
    pose = _random_pose(card, size, rng)
    background = random_background(rng, size, part)
    picture, mask = paint(card, pose, background, draw_light(rng, (size, size)))
    outline = np.clip(project(pose, corners(card)), 0, size)
    (x0, y0), (x1, y1) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    return CardSample(develop(picture, rng), label, (x0, y0, x1, y1), mask)


def write_folder(root: str | Path, part: Part, count: int, *, seed: int = 0, size: int = 128) -> Path:
    """Write the first `count` samples of a part as `root/LABEL/INDEX.jpg` and return `root`.

    Raises:
        DataError: the folder cannot be written.
    """
    root, cards = Path(root), Cards(part, seed=seed, size=size)
    try:
        for label in LABELS:
            (root / label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            sample = cards.sample(index)
            coded = cv2.imencode(".jpg", sample.picture, [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
            (root / LABELS[sample.label] / f"{index:06d}.jpg").write_bytes(coded.tobytes())
    except OSError as error:
        raise DataError(
            f"{error.filename or root}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    return root


@dataclass(frozen=True)
class _Scene:
    """A card before a background, for the frames that show it."""

    card: Card
    label: str
    background: Picture
    """Larger than a frame, so that the camera can sway."""
    light: Light
    angle: float
    tilt: NDArray[np.float64]
    scale: float
    """Height of the card in pixels."""
    centre: NDArray[np.float64]
    """Where the card rests, in pixels."""
    entry: NDArray[np.float64]
    """From there to where it comes from and goes to, in pixels."""
    phase: float


def write_video(
    path: str | Path, *, seed: int = 0, seconds: float = 12.0, fps: int = 30, size: tuple[int, int] = (640, 480)
) -> Path:
    """Write an mp4 of cards held before a camera, one each 1.2 s, with digits and photographs of the test part.

    Beside it, `NAME.truth.jsonl` has one object a frame: `index`, `label`, and `box`, the card's left, top, right and
    bottom in pixels. The label is null while the card comes and goes; else all of the card lies in the central square,
    45 to 85 % of its side high. The digits are of the clearly written half, since ten instances alone make a video.

    Raises:
        DataError: the video cannot be written.
    """
    path = Path(path)
    unfinished = path.with_suffix(".part.mp4")
    truths = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter.fourcc(*"mp4v"), float(fps), size)
        if not writer.isOpened():
            raise DataError(f"{path}: the video cannot be written; choose a folder that can be written to")
        for picture, truth in _frames(seed, round(seconds * fps), fps, size):
            writer.write(picture)
            truths.append(json.dumps(truth))
        writer.release()
        path.with_suffix(".truth.jsonl").write_text("\n".join(truths) + "\n", encoding="utf-8")
        return unfinished.replace(path)
    except OSError as error:
        raise DataError(f"{path}: the video cannot be written ({error.strerror}); choose another folder") from error


def _frames(seed: int, count: int, fps: int, size: tuple[int, int]) -> Iterator[tuple[Picture, dict[str, Any]]]:
    rng = np.random.default_rng((seed, len(PARTS)))
    each, slide = round(1.2 * fps), max(2, round(0.2 * fps))
    order: list[int] = []
    background, light = _place(rng, size)
    for index in range(count):
        shown = index % each
        if shown == 0:
            if not order:
                order = rng.permutation(len(LABELS)).tolist()
            if index and len(order) % 3 == 0:
                background, light = _place(rng, size)
            scene = _draw_scene(order.pop(), background, light, size, rng)
        away = max(0.0, 1 - (shown + 1) / slide, 1 - (each - 1 - shown) / slide)
        picture, outline = _shoot(scene, index / fps, away**2, size)
        (x0, y0), (x1, y1) = outline.min(axis=0), outline.max(axis=0)
        left, top = (size[0] - min(size)) / 2, (size[1] - min(size)) / 2
        inside = x0 >= left and y0 >= top and x1 <= size[0] - left and y1 <= size[1] - top
        label = scene.label if inside and away == 0 else None
        box = [round(float(v), 1) for v in (x0, y0, x1, y1)] if label else None
        yield grain(picture, rng, 3.0), {"index": index, "label": label, "box": box}


def _place(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Picture, Light]:
    shape = (size[1], size[0])
    return photograph_crop(rng, (shape[0] * 5 // 4, shape[1] * 5 // 4), "test"), draw_light(rng, shape)


def _draw_scene(
    label: int, background: Picture, light: Light, size: tuple[int, int], rng: np.random.Generator
) -> _Scene:
    card = draw_card("test", label, rng, clear=True)
    angle, tilt, side = math.radians(rng.uniform(-14, 14)), rng.uniform(-0.3, 0.3, 2), min(size)
    outline = project(hold(angle, (tilt[0], tilt[1])), corners(card))
    extent = (outline.max(axis=0) - outline.min(axis=0)).max()
    scale = side * min(rng.uniform(0.5, 0.82), 0.85 / extent)
    slack = max(0.0, (side - 1.15 * extent * scale) / 2)
    centre = np.array(size) / 2 + rng.uniform(-slack, slack, 2)
    entry = np.array([[-1.0, 0.2], [1.0, 0.2], [0.1, 1.0]])[rng.integers(3)] * max(size)
    return _Scene(card, LABELS[label], background, light, angle, tilt, scale, centre, entry, rng.uniform(0, 6))


def _shoot(scene: _Scene, time_s: float, away: float, size: tuple[int, int]) -> tuple[Picture, NDArray[np.float64]]:
    """One frame and the (4, 2) corners of the card in it; `away` is 1 where the card is out of sight, 0 at rest."""
    width, height = size
    wave = np.sin(time_s * np.array([2.1, 2.9, 1.7, 2.3, 3.1, 1.3, 1.9]) + scene.phase)
    sway = np.array([width, height]) * (0.125 + 0.02 * wave[:2])  # the camera's, which the card follows half
    view = cv2.warpAffine(scene.background, np.array([[1, 0, -sway[0]], [0, 1, -sway[1]]]), size)
    tilt = scene.tilt + 0.06 * wave[2:4]
    pose = hold(scene.angle + 0.04 * wave[4], (tilt[0], tilt[1]))
    centre = scene.centre + 0.012 * min(size) * wave[5:7] + away * scene.entry
    pose = scaled(pose, scene.scale * (1 + 0.02 * wave[4]), centre)
    return paint(scene.card, pose, np.asarray(view, np.uint8), scene.light)[0], project(pose, corners(scene.card))


def attributions(part: Part | None = None) -> list[dict[str, str]]:
    """Sources and licences of the digits and the photographs (of one part, or of all), as bundle.json lists them."""
    digits = {
        "name": "Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998)",
        "source": "scikit-learn",
        "licence": "CC-BY-4.0",
        "credit": "UCI Machine Learning Repository, doi.org/10.24432/C50P49",
    }
    return [digits, *photograph_attributions(part)]
