"""Measure `make` on a small set of real photographs: things on a shelf, cut out to their boxes.

    python tools/groceries.py ~/edge-data/det-groceries --out runs/groceries --seeds 3

Takes 300 crops of the pack's training pictures, 8 classes, and runs `make` on them with each seed. Prints the minutes it
took and the top-1 of student and teacher: on its own validation and test parts, and on the crops of the pack's validation
pictures, which no run has seen and which are many enough to tell a few points apart.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn import workflow
from edgeattn._cv2 import cv2
from edgeattn.imaging import Picture, read_picture
from edgeattn.train import Trained
from edgeattn.train.sources import open_data
from edgeattn.train.tasks.classify import answers

LEAST_SIDE = 16


def crops(root: Path, part: str) -> list[tuple[Picture, str]]:
    """Every box of a part cut out, at most one a picture and class, with its class."""
    told = json.loads((root / f"instances_{part}.json").read_text())
    names = {category["id"]: category["name"] for category in told["categories"]}
    files = {image["id"]: root / part / image["file_name"] for image in told["images"]}
    found, seen = [], set()
    for box in told["annotations"]:
        key = (box["image_id"], box["category_id"])
        x, y, width, height = (int(v) for v in box["bbox"])
        if key in seen or min(width, height) < LEAST_SIDE:
            continue
        seen.add(key)
        found.append((read_picture(files[key[0]])[max(0, y) : y + height, max(0, x) : x + width], names[key[1]]))
    return found


def write(cut: Sequence[tuple[Picture, str]], folder: Path, count: int) -> None:
    """Write `count` crops as class folders, the same number of each class."""
    shutil.rmtree(folder, ignore_errors=True)
    labels = sorted({label for _, label in cut})
    rng = np.random.default_rng(0)
    for k, label in enumerate(labels):
        own = [picture for picture, name in cut if name == label]
        (folder / label).mkdir(parents=True)
        for i in rng.permutation(len(own))[: (count + k) // len(labels)]:
            cv2.imwrite(str(folder / label / f"{i:04d}.png"), own[i])


def right(trained: Trained, pictures: Sequence[tuple[Picture, int]]) -> float:
    """Share of right answers."""
    return float(np.mean(answers(trained.model, pictures, trained.recipe) == [label for _, label in pictures]))


def main() -> None:
    """Cut, make, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the det-groceries pack")
    parser.add_argument("--out", type=Path, default=Path("runs/groceries"))
    parser.add_argument("--count", type=int, default=300, help="crops to make from (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.0, help="as of `edgeattn make` (default: %(default)s)")
    options = parser.parse_args()
    photos = options.out / "photos"
    write(crops(options.root, "train"), photos, options.count)
    rows = []
    for seed in range(options.seeds):
        recipe = workflow.photo_recipe(photos, seed=seed)
        started = time.monotonic()
        data = open_data(recipe, options.out / str(seed))
        made = workflow.make(
            recipe, data, options.out / str(seed), "groceries", minutes=options.minutes, resume=False,
            progress=True, say=print,
        )  # fmt: skip
        minutes = (time.monotonic() - started) / 60
        unseen = [(picture, data.labels.index(name)) for picture, name in crops(options.root, "val")]
        sets = {"validation": data.validation, "test": data.test, "unseen": unseen}
        row: dict[str, Any] = {"seed": seed, "minutes": round(minutes, 2), "train": len(data.train)}
        for name, pictures in sets.items():
            row[f"{name}_n"] = len(pictures)
            row[f"{name}_student"] = round(right(made.trained, pictures), 4)
            row[f"{name}_teacher"] = round(right(made.teacher, pictures), 4) if made.teacher else None
        row["verdicts"] = {f"{r.engine} {r.precision}": r.verdict for r in made.quantized.report.results}
        rows.append(row)
        print(json.dumps(row))
    for name in ("validation", "test", "unseen"):
        behind = [100 * (row[f"{name}_teacher"] - row[f"{name}_student"]) for row in rows]
        print(f"{name}: student behind its teacher by {np.mean(behind):.1f} points (each seed: {np.round(behind, 1)})")


if __name__ == "__main__":
    main()
