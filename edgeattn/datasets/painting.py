"""Painting one card: its drawing, how it is held, how it is lit and what lies over it.

Legend of shapes: H W of the picture. Card coordinates: the origin in the middle of the card, its height is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.datasets.backgrounds import Part
from edgeattn.errors import ExtraMissingError
from edgeattn.imaging import Picture

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]

LABELS = tuple("0123456789")
CELLS = 10
"""Cells across a glyph: the 8 of a digit and an empty one on each side."""
GLYPH = 80
"""Pixels across a glyph."""
WOBBLES = 256
"""Elastic changes to choose from."""
WOBBLE = 3.0
"""Their standard deviation, in pixels of the glyph (a cell of the digit is 8)."""
SHEET = 128
"""Pixels across the drawing of an empty card."""
_RAMP = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
_PART_OF_TWENTY: dict[Part, range] = {"train": range(14), "validation": range(14, 17), "test": range(17, 20)}


@dataclass(frozen=True)
class Cover:
    """Something that lies over the edge of a card: a finger or the corner of a sheet."""

    angle: float
    """Direction from the middle of the card, in radians."""
    depth: float
    """How far it reaches in over the card's edge, in card heights."""
    width: float
    """Half of its width, in card heights."""
    finger: bool
    """Round like a fingertip, or straight."""
    colour: Floats
    """(3,) BGR."""


@dataclass(frozen=True)
class Card:
    """What is fixed about one card, however it is held."""

    glyph: Picture
    """(GLYPH, GLYPH) ink of the digit."""
    sheet: Picture
    """(SHEET, SHEET) the empty card: 0 outside, 128 paper, 255 a printed line."""
    aspect: float
    """Width over height."""
    placed: Matrix
    """(3, 3) from glyph pixels to card coordinates."""
    weight: float
    """Level of ink that counts as printed: low gives thick strokes."""
    paper: Floats
    """(3,) BGR."""
    ink: Floats
    """(3,) BGR."""
    cover: Cover | None
    """What lies over it, if anything."""


@dataclass(frozen=True)
class Light:
    """How a scene is lit: (S, S) factors."""

    background: Floats
    """On what lies behind."""
    card: Floats
    """On the card and what covers it."""


@cache
def _glyphs(part: Part) -> tuple[NDArray[np.uint8], ...]:
    """Digits of one part: per class (n, GLYPH, GLYPH) ink, the clearly written ones first."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ExtraMissingError("scikit-learn", "train", "the data set 'cards'") from error
    images, target = load_digits(return_X_y=True)
    by_class = []
    for label in range(len(LABELS)):
        own = images[target == label].reshape(-1, 8, 8).astype(np.float32) / 16.0
        place = np.random.default_rng(label).permutation(len(own)) % 20  # fixed: the parts do not depend on a seed
        chosen = own[np.isin(place, _PART_OF_TWENTY[part])]
        unusual = np.square(chosen - np.median(own, axis=0)).sum(axis=(1, 2))
        by_class.append(np.stack([enlarge(chosen[i]) for i in np.argsort(unusual)]))
    return tuple(by_class)


def enlarge(digit: Floats) -> Picture:
    """(8, 8) ink of 0 to 1 to a glyph, (GLYPH, GLYPH) bytes."""
    grown = cv2.resize(np.pad(digit, 1), (GLYPH, GLYPH), interpolation=cv2.INTER_CUBIC)
    sharper = grown + 0.9 * (grown - cv2.GaussianBlur(grown, (0, 0), GLYPH / CELLS))  # opens loops that ink has filled
    return np.asarray(np.clip(sharper * 255.0, 0, 255), np.uint8)


@cache
def _sheets() -> tuple[Picture, ...]:
    """Empty cards: plain, with a frame, with a rule below the digit, with both; (SHEET, SHEET) each."""
    card = _rounded(4, 12)
    frame = cv2.subtract(_rounded(10, 8), _rounded(13, 6))
    rule = np.zeros((SHEET, SHEET), np.uint8)
    cv2.rectangle(rule, (36, 113), (SHEET - 36, 115), 255, -1)
    # One channel for both, since warping two costs three times as much: lines lie within the paper, never at its edge.
    return tuple(
        np.asarray(cv2.addWeighted(card, 128 / 255, lines, 127 / 255, 0), np.uint8)
        for lines in (np.zeros_like(rule), frame, rule, cv2.max(frame, rule))
    )


def _rounded(inset: int, radius: int) -> Picture:
    big = np.zeros((4 * SHEET, 4 * SHEET), np.uint8)
    low, high = 4 * (inset + radius), 4 * (SHEET - inset - radius)
    cv2.rectangle(big, (low, low), (high, high), 255, -1)
    grown = cv2.dilate(big, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (8 * radius + 1,) * 2))
    return np.asarray(cv2.resize(grown, (SHEET, SHEET), interpolation=cv2.INTER_AREA), np.uint8)


@cache
def _noise() -> Floats:
    return np.random.default_rng(0).standard_normal((2048, 512), dtype=np.float32)


@cache
def _wobbles() -> tuple[tuple[Floats, Floats], ...]:
    """Smooth elastic changes of a glyph, as the two maps of `cv2.remap` (Simard et al. 2003)."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:GLYPH, :GLYPH].astype(np.float32)
    fields = rng.normal(0.0, WOBBLE, (WOBBLES, 2, 4, 4)).astype(np.float32)
    grown = [[cv2.resize(axis, (GLYPH, GLYPH), interpolation=cv2.INTER_CUBIC) for axis in field] for field in fields]
    return tuple((x + across, y + down) for across, down in grown)


def draw_card(part: Part, label: int, rng: np.random.Generator, *, clear: bool = False) -> Card:
    """Draw a card for a digit at random; `clear` takes the digit from the clearly written half only."""
    own = _glyphs(part)[label]
    glyph = own[rng.integers(len(own) // 2 if clear else len(own))]
    return print_card(wobbled(glyph, rng) if part == "train" else glyph, rng)


def wobbled(glyph: Picture, rng: np.random.Generator) -> Picture:
    """The glyph as another hand would have written it: 1,260 digits are soon known by heart."""
    return np.asarray(cv2.remap(glyph, *_wobbles()[rng.integers(WOBBLES)], cv2.INTER_LINEAR), np.uint8)


def print_card(glyph: Picture, rng: np.random.Generator) -> Card:
    """Print (GLYPH, GLYPH) ink on a card of random make."""
    height = rng.uniform(0.58, 0.72)
    turn, slant, stretch = rng.uniform(-0.1, 0.1), rng.uniform(-0.15, 0.15), rng.uniform(0.85, 1.2)
    step = height / 8 * CELLS / GLYPH
    sin, cos = math.sin(turn), math.cos(turn)
    shape = np.array([[cos * stretch, cos * slant - sin], [sin * stretch, sin * slant + cos]]) * step
    placed = np.eye(3)
    placed[:2, :2] = shape
    placed[:2, 2] = rng.uniform(-0.03, 0.03, 2) - shape @ np.full(2, (GLYPH - 1) / 2)
    paper, ink = _paper_and_ink(rng)
    return Card(
        glyph=glyph,
        sheet=_sheets()[rng.integers(4)],
        aspect=rng.uniform(0.74, 0.95),
        placed=placed,
        weight=rng.uniform(0.3, 0.45),
        paper=paper,
        ink=ink,
        cover=_cover(rng) if rng.random() < 0.5 else None,
    )


def _paper_and_ink(rng: np.random.Generator) -> tuple[Floats, Floats]:
    light = np.clip(rng.uniform(175, 245) + rng.uniform(-32, 22, 3), 0, 255)
    dark = np.clip(rng.uniform(10, 70) + rng.uniform(-35, 35, 3), 0, 255)
    swapped = rng.random() < 0.2
    paper, ink = (dark, light) if swapped else (light, dark)
    return paper.astype(np.float32), ink.astype(np.float32)


def _cover(rng: np.random.Generator) -> Cover:
    finger = bool(rng.random() < 0.6)
    skin = np.array([135.0, 165.0, 215.0]) * rng.uniform(0.35, 1.05) + rng.uniform(-15, 15, 3)
    colour = np.clip(skin if finger else rng.uniform(20, 235, 3), 0, 255).astype(np.float32)
    return Cover(rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.11), rng.uniform(0.06, 0.1), finger, colour)


def hold(angle: float, tilt: tuple[float, float]) -> Matrix:
    """(3, 3) from card coordinates to a plane seen from three card heights away; angles in radians."""
    sin_x, sin_y, cos_x, cos_y = math.sin(tilt[0]), math.sin(tilt[1]), math.cos(tilt[0]), math.cos(tilt[1])
    sin, cos = math.sin(angle), math.cos(angle)
    x, y = (cos_y, sin_x * sin_y), (0.0, cos_x)
    return np.array(
        [
            [cos * x[0] - sin * y[0], cos * x[1] - sin * y[1], 0.0],
            [sin * x[0] + cos * y[0], sin * x[1] + cos * y[1], 0.0],
            [-sin_y / 3, sin_x * cos_y / 3, 1.0],
        ]
    )


def scaled(pose: Matrix, scale: float, shift: NDArray[np.float64]) -> Matrix:
    """`pose` with its plane enlarged by `scale` and then moved by `shift` (x, y), in pixels."""
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]]) @ pose


def project(pose: Matrix, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) points through `pose`."""
    mapped = points @ pose[:, :2].T + pose[:, 2]
    return np.asarray(mapped[:, :2] / mapped[:, 2:])


def corners(card: Card) -> NDArray[np.float64]:
    """(4, 2) corners of a card, in card coordinates."""
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [card.aspect / 2, 0.5]


def draw_light(rng: np.random.Generator, shape: tuple[int, int]) -> Light:
    """Uneven light over a picture of `shape` (H, W), another on the card, and now and then the edge of a shadow."""
    common = _patch(rng, shape, rng.uniform(0.65, 1.1), 0.25)
    if rng.random() < 0.25:
        common *= _shadow_edge(rng, shape)
    return Light(common, common * _patch(rng, shape, rng.uniform(0.8, 1.1), 0.2))


def _patch(rng: np.random.Generator, shape: tuple[int, int], level: float, spread: float) -> Floats:
    grid = (level + spread * rng.uniform(-1, 1, (3, 3))).astype(np.float32)
    return np.asarray(cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_LINEAR))


def _shadow_edge(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    x, y = np.linspace(-1, 1, shape[1], dtype=np.float32), np.linspace(-1, 1, shape[0], dtype=np.float32)
    angle, softness, depth = rng.uniform(0, 2 * np.pi), rng.uniform(3, 20), rng.uniform(0.2, 0.45)
    across = (
        np.float32(np.cos(angle)) * x + (np.float32(np.sin(angle)) * y - np.float32(rng.uniform(-0.5, 0.5)))[:, None]
    )
    return np.asarray(1.0 - np.float32(depth) * np.clip(across * np.float32(softness) + 0.5, 0, 1), np.float32)


def paint(card: Card, pose: Matrix, background: Picture, light: Light) -> tuple[Picture, NDArray[np.bool_]]:
    """Paint a card over (H, W, 3) BGR bytes; `pose` leads from card coordinates to pixels.

    Returns:
        The picture, and (H, W) where the card is seen.
    """
    size = background.shape[1::-1]
    sheet_step = np.diag([card.aspect / (SHEET - 8), 1 / (SHEET - 8), 1.0]) @ _moved(-(SHEET - 1) / 2)
    sheet = cv2.warpPerspective(card.sheet, pose @ sheet_step, size, flags=cv2.INTER_LINEAR)
    digit = cv2.warpPerspective(card.glyph, pose @ card.placed, size, flags=cv2.INTER_LINEAR)
    coverage = cv2.add(sheet, sheet)
    share = cv2.max(cv2.LUT(digit, _press(card, pose)), cv2.addWeighted(sheet, 2.0, sheet, 0.0, -255.0))
    painted = _toned(share, card.paper, card.ink)
    cover = _cover_mask(card, pose, size)
    if cover is not None:
        coloured = np.empty_like(painted)
        coloured[:] = card.cover.colour if card.cover is not None else 0
        share_cover = cover.astype(np.float32) * np.float32(1 / 255)
        painted = cv2.blendLinear(coloured, painted, share_cover, 1.0 - share_cover)
    front = (coverage if cover is None else cv2.max(coverage, cover)).astype(np.float32) * np.float32(1 / 255)
    depth = max(2.0, size[1] / 40)
    shade = cv2.warpAffine(front, np.array([[1, 0, 0.6 * depth], [0, 1, depth]]), size)
    behind = light.background * (1.0 - np.float32(0.45) * cv2.blur(shade, (2 * int(depth) + 1,) * 2))
    seen = coverage > 127 if cover is None else (coverage > 127) & (cover < 128)
    return _compose(painted, background, front * light.card, (1.0 - front) * behind), seen


def _moved(by: float) -> Matrix:
    return np.array([[1, 0, by], [0, 1, by], [0, 0, 1]])


def _press(card: Card, pose: Matrix) -> NDArray[np.uint8]:
    """Table from enlarged ink to print: sharper the more pixels a cell of the digit takes."""
    cell = abs(np.linalg.det(pose[:2, :2])) ** 0.5 * card.placed[1, 1] * GLYPH / CELLS
    gain = float(np.clip(cell * 0.6, 1.8, 8.0))
    level = (_RAMP - np.float32(card.weight)) * np.float32(255 * gain) + np.float32(127.5)
    return np.asarray(np.clip(level, 0, 255), np.uint8)


def _toned(share: Picture, zero: Floats, full: Floats) -> Picture:
    table = zero + (full - zero) * _RAMP
    return np.asarray(cv2.LUT(cv2.merge([share, share, share]), table.astype(np.uint8)[:, None, :]), np.uint8)


def _compose(front: Picture, back: Picture, front_weight: Floats, back_weight: Floats) -> Picture:
    lit_front = cv2.multiply(front, cv2.merge([front_weight] * 3), dtype=cv2.CV_32F)
    lit_back = cv2.multiply(back, cv2.merge([back_weight] * 3), dtype=cv2.CV_32F)
    return np.asarray(cv2.add(lit_front, lit_back, dtype=cv2.CV_8U), np.uint8)


def _cover_mask(card: Card, pose: Matrix, size: tuple[int, int]) -> Picture | None:
    cover = card.cover
    if cover is None:
        return None
    out = np.array([np.cos(cover.angle), np.sin(cover.angle)])
    edge = min(
        card.aspect / 2 / max(abs(out[0]), 1e-6), 0.5 / max(abs(out[1]), 1e-6)
    )  # from the middle to the card's edge
    across = np.array([-out[1], out[0]]) * cover.width
    tip, far = out * (edge - cover.depth), out * (edge + 0.7)
    if cover.finger:
        turn = np.linspace(-np.pi / 2, np.pi / 2, 9)
        tip = tip + out * cover.width
        points = [tip - out * cover.width * np.cos(t) + across * np.sin(t) for t in turn] + [far + across, far - across]
    else:
        points = [tip - 6 * across, tip + 6 * across, far + 6 * across, far - 6 * across]
    mask = np.zeros(size[::-1], np.uint8)
    outline = np.rint(project(pose, np.array(points)) * 16).astype(np.int32)
    cv2.fillConvexPoly(mask, outline, 255, cv2.LINE_AA, 4)
    return mask


def develop(picture: Picture, rng: np.random.Generator) -> Picture:
    """What a camera adds: a little blur, noise, exposure and white balance."""
    if rng.random() < 0.3:
        sigma = rng.uniform(0.3, 0.9) * picture.shape[0] / 96
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.uint8)
    gains = rng.uniform(0.9, 1.12) * np.exp(rng.uniform(-0.08, 0.08, 3)).astype(np.float32)
    table = np.clip(255 * gains * _RAMP ** np.float32(rng.uniform(0.8, 1.2)), 0, 255).astype(np.uint8)
    picture = np.asarray(cv2.LUT(picture, table[:, None, :]), np.uint8)
    if rng.random() < 0.4:
        picture = grain(picture, rng, rng.uniform(2, 8))
    return picture


def grain(picture: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Add sensor noise of standard deviation `strength` to (H, W, 3) bytes."""
    height, width = picture.shape[:2]
    bank = _noise()
    if height * 3 > bank.shape[0] or width > bank.shape[1]:
        field = cv2.resize(bank, (width, height * 3), interpolation=cv2.INTER_NEAREST)
    else:
        y, x = rng.integers(bank.shape[0] - height * 3 + 1), rng.integers(bank.shape[1] - width + 1)
        field = bank[y : y + height * 3, x : x + width]
    colour = cv2.merge([field[:height], field[height : 2 * height], field[2 * height :]])
    return np.asarray(cv2.addWeighted(picture, 1.0, colour, strength, 0.0, dtype=cv2.CV_8U), np.uint8)
