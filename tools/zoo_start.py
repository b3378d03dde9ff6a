"""Make the zoo's starting weights, `pico-coord.safetensors`: what a pico learns from before it sees your pictures.

    python tools/zoo_start.py ~/edge-data/sign-digits --start runs/sign-digits/round-2 --out runs/start

They learn hand signs over backgrounds (as the zoo's `sign-digits`) and printed letters on cards, no digits among them,
so that a handful of minutes on a small set of one's own starts from edges, strokes and shapes, not from noise.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from zoo_sign_digits import LABELS, PROVENANCE, SignViews, read_hands, split_people

from edgeattn._cv2 import cv2
from edgeattn.datasets.cards import render
from edgeattn.datasets.painting import enlarge, print_card, wobbled
from edgeattn.imaging import Picture
from edgeattn.train import Recipe, TrainingData, train

LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ" + "abdefghnqrt"  # without I and O, which are digits too
FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_PLAIN,
    cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
)
HERSHEY = {
    "name": "Hershey fonts",
    "source": "opencv",
    "licence": "free use with credit",
    "credit": "A. V. Hershey, U.S. National Bureau of Standards, 1967",
}
SIZE = 96


@cache
def glyphs(letter: str) -> tuple[Picture, ...]:
    """A letter in every font, upright and slanted, thin and thick, as coarse as a scanned digit."""
    return tuple(
        enlarge(_coarse(letter, font | slant, thickness))
        for font in FONTS
        for slant in (0, cv2.FONT_ITALIC)
        for thickness in (1, 3, 5)
    )


def _coarse(letter: str, font: int, thickness: int) -> NDArray[np.float32]:
    big = np.zeros((256, 256), np.uint8)
    cv2.putText(big, letter, (70, 180), font, 8.0 if font % 16 == cv2.FONT_HERSHEY_PLAIN else 4.0, 255, 4, cv2.LINE_AA)
    x, y, width, height = cv2.boundingRect(big)
    side = 64 - thickness
    scale = side / max(height, 1.2 * width)  # narrow letters stay narrow
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(big[y : y + height, x : x + width], size, interpolation=cv2.INTER_AREA)
    top, left = (64 - size[1]) // 2, (64 - size[0]) // 2
    ink = np.zeros((64, 64), np.uint8)
    ink[top : top + size[1], left : left + size[0]] = np.where(small > 60, 255, 0)
    ink = cv2.dilate(ink, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thickness, thickness)))
    coarse = cv2.resize(ink, (8, 8), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray(coarse / coarse.max(), np.float32)


class StartViews:
    """Hand signs, no sign, and letters; the labels are `LABELS`, none of these, then `LETTERS`."""

    def __init__(self, signs: SignViews, count: int, letters: float = 0.6) -> None:
        self.signs, self.count, self.letters = signs, count, letters

    def __len__(self) -> int:
        return self.count

    def view(self, index: int, rng: np.random.Generator) -> tuple[Picture, int]:
        """As `Views.view`."""
        if rng.random() >= self.letters:
            return self.signs.view(int(rng.integers(len(self.signs))), rng)
        which = int(rng.integers(len(LETTERS)))
        own = glyphs(LETTERS[which])
        card = print_card(wobbled(own[rng.integers(len(own))], rng), rng)
        return render(card, which, "train", SIZE, rng).picture, len(LABELS) + 1 + which


def main() -> None:
    """Train, and write the weights with their attributions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the sign-digits pack")
    parser.add_argument("--start", default="none", help="a run's folder to start from")
    parser.add_argument("--out", type=Path, default=Path("runs/start"))
    parser.add_argument("--epochs", type=int, default=150, help="epochs of 4,000 views (default: %(default)s)")
    options = parser.parse_args()
    hands, held_out = split_people(read_hands(options.root, "train"))
    views = StartViews(SignViews(hands), 4_000)
    held = StartViews(SignViews(held_out), 1_000)
    validation = [held.view(i, np.random.default_rng((9, i))) for i in range(len(held))]  # held-out hands; letters anew
    data = TrainingData((*LABELS, "none of these", *LETTERS), views, validation)
    recipe = Recipe("signs and letters", epochs=options.epochs, lr=0.01, label_smoothing=0.05, start=options.start)
    trained = train(recipe, options.out, data=data, resume=True)
    print(f"validation top-1 {trained.metrics['validation_top1']:.2%}")
    attributions = [*PROVENANCE["attributions"], HERSHEY]
    target = options.out / "pico-coord.safetensors"
    weights = load_file(options.out / "model.safetensors")
    save_file(weights, target, metadata={"attributions": json.dumps(attributions)})
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
