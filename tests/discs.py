"""Pictures for tests that train: a coloured disc on noise, a class a colour; learnt in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeattn._cv2 import cv2
from edgeattn.imaging import Picture

COLOURS = {"blue": (220, 40, 40), "green": (40, 200, 40), "red": (40, 40, 220)}


def pictures(per_class: int, seed: int = 0) -> list[tuple[Picture, int]]:
    """Pictures with their labels, class by class."""
    rng = np.random.default_rng(seed)
    found = []
    for label, colour in enumerate(COLOURS.values()):
        for _ in range(per_class):
            picture = rng.integers(0, 256, (70, 90, 3), np.uint8)
            centre = tuple(int(v) for v in rng.integers(25, 45, 2))
            cv2.circle(picture, centre, int(rng.integers(14, 24)), colour, -1)
            found.append((picture, label))
    return found


def write(root: Path, per_class: int, seed: int = 0) -> Path:
    """Write them as class folders."""
    names = list(COLOURS)
    for i, (picture, label) in enumerate(pictures(per_class, seed)):
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        (root / names[label] / f"{i}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return root
