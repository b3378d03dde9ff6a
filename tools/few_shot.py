"""What a teacher is worth with eight people's pictures: hand signs, student with a teacher against student without.

    python tools/few_shot.py ~/edge-data/sign-digits --out runs/few-shot --seeds 5

Each seed draws eight people of the pack's training part, about 80 pictures, and trains two picos on them, alike but for
the teacher: an EfficientNet-Lite0 fine-tuned on the same pictures. Both start from random weights, since the zoo's have seen
these hands. They are judged on all other people of the training part; the pack's test part is not touched.
Prints the paired difference with its 95 % interval (Student's t over the seeds). Resumes where it was interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats  # type: ignore[import-untyped]  # scikit-learn brings it

from edgeattn import workflow
from edgeattn.datasets.folder import Sample
from edgeattn.train import Recipe, Trained, TrainingData, train
from edgeattn.train.loader import FolderViews, PictureFiles
from edgeattn.train.loop import answers

LABELS = tuple("0123456789")
PEOPLE = 8


def open_people(root: Path, recipe: Recipe, seed: int) -> TrainingData:
    """Pictures of eight people to train on; those of all others to judge by."""
    with (root / "train.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    people = sorted({row["participant"] for row in rows})
    chosen = set(np.random.default_rng(seed).permutation(people)[:PEOPLE])
    parts: dict[bool, list[Sample]] = {True: [], False: []}
    for row in rows:
        parts[row["participant"] in chosen].append(Sample(root / row["file"], int(row["label"])))
    views = FolderViews(parts[True], recipe.input, recipe.augment)
    return TrainingData(LABELS, views, PictureFiles(parts[False]))


def right(trained: Trained, data: TrainingData) -> float:
    """Share of right answers on the other people."""
    given = answers(trained.model, data.validation, trained.recipe)
    return float(np.mean(given == [label for _, label in data.validation]))


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the sign-digits pack")
    parser.add_argument("--out", type=Path, default=Path("runs/few-shot"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=400, help="of a student (default: %(default)s)")
    parser.add_argument("--teacher-epochs", type=int, default=80, help="of a teacher (default: %(default)s)")
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        folder = options.out / str(seed)
        alone = replace(
            workflow.photo_recipe(options.root, model="pico", teacher="none", seed=seed),
            epochs=options.epochs,
            start="none",
        )
        data = open_people(options.root, alone, seed)
        teacher = replace(workflow.teacher_recipe(alone), epochs=options.teacher_epochs)
        taught = replace(alone, teacher=str(folder / "teacher"))
        row: dict[str, float] = {"seed": seed, "train": len(data.train), "judged": len(data.validation)}
        for name, recipe in (("teacher", teacher), ("alone", alone), ("taught", taught)):
            row[name] = round(right(train(recipe, folder / name, data=data, resume=True), data), 4)
        rows.append(row)
        print(json.dumps(row), flush=True)
    gain = 100 * np.array([row["taught"] - row["alone"] for row in rows])
    half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
    print(
        f"teacher against none: {gain.mean():+.1f} points, 95 % interval {gain.mean() - half:+.1f} to {gain.mean() + half:+.1f}"
    )


if __name__ == "__main__":
    main()
