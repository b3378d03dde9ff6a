"""Text and translucent panels on pictures, in sizes that follow the picture's."""

from __future__ import annotations

import unicodedata

import numpy as np

from edgeattn._cv2 import cv2
from edgeattn.imaging import Picture

Colour = tuple[int, int, int]
"""Blue, green, red, 0 to 255."""

BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)
SILVER: Colour = (215, 215, 215)
GREY: Colour = (120, 120, 120)
GREEN: Colour = (88, 166, 58)

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CAPITAL_PX = 21.0  # height of a capital letter at font scale 1
_KNOWS_UNICODE = hasattr(cv2, "FontFace")  # OpenCV 5; before, anything but ASCII is drawn as question marks


def capital_px(picture: Picture) -> int:
    """A legible height of capital letters for a picture: 15 pixels at 640x480, 8 at least."""
    height, width = picture.shape[:2]
    return max(8, round(0.031 * int(min(height, width))))


def text_width(text: str, capital: float) -> int:
    """Width in pixels of a text whose capitals are `capital` pixels high."""
    (width, _height), _baseline = cv2.getTextSize(_drawable(text), _FONT, capital / _CAPITAL_PX, _thickness(capital))
    return int(width)


def write(picture: Picture, text: str, at: tuple[int, int], capital: float, colour: Colour = WHITE) -> None:
    """Write on the picture itself; `at` is the left end of the line under the letters: (x, y)."""
    scale = capital / _CAPITAL_PX
    cv2.putText(picture, _drawable(text), at, _FONT, scale, colour, _thickness(capital), cv2.LINE_AA)


def shorten(text: str, capital: float, width: int) -> str:
    """Cut a text at its end, marked by dots, until it fits into `width` pixels."""
    if text_width(text, capital) <= width:
        return text
    kept = text
    while kept and text_width(kept + "...", capital) > width:
        kept = kept[:-1]
    return kept + "..." if kept else ""


def shade(picture: Picture, box: tuple[int, int, int, int], colour: Colour = BLACK, opacity: float = 0.6) -> None:
    """Lay a translucent rectangle (x, y, width, height) over the picture itself; parts outside of it are left out."""
    x, y, width, height = box
    area = picture[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)]
    if area.size:
        area[:] = cv2.addWeighted(area, 1.0 - opacity, np.full_like(area, colour), opacity, 0.0)


def fitted(picture: Picture, size: tuple[int, int]) -> Picture:
    """Scale into (width, height), the rest black; up to a few pixels are only padded."""
    width, height = size
    if picture.shape[:2] == (height, width):
        return picture
    scale = min(width / picture.shape[1], height / picture.shape[0])
    if not 1.0 <= scale <= 1.02:
        sides = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
        picture = np.asarray(cv2.resize(picture, sides, interpolation=cv2.INTER_AREA), np.uint8)
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def _thickness(capital: float) -> int:
    return 2 if capital >= 14 else 1


def _drawable(text: str) -> str:
    if _KNOWS_UNICODE or text.isascii():
        return text
    folded = unicodedata.normalize("NFKD", text)
    return "".join(c if c.isascii() else "?" for c in folded if not unicodedata.combining(c))
