"""Does attention pay, and does a teacher, when there are few pictures? Hand signs of 4, 8 and 16 people.

    python tools/few_shot.py ~/edge-data/sign-digits --seeds 5    # started in a second shell too, they share the work
    python tools/evidence.py --tables evidence/few-shot.jsonl

Each seed draws people, about ten pictures each, and trains picos on them from random weights, all for about the same
number of views: each attention at the cost of the plain net, from the labels alone and with a teacher. The teacher is an
EfficientNet-Lite0 that was fine-tuned once on 80 other people's pictures: where it has learnt a picture by heart it can only
repeat the label. All are judged on 49 more people of the pack's training part, whom no net has seen; the pack's test part is
not touched. Resumes where it was interrupted; evidence.py prints the tables.
"""

from __future__ import annotations

import argparse
import csv
import functools
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
from evidence import run_once, taken

from edgeattn import workflow
from edgeattn.datasets.folder import Sample
from edgeattn.nn.attention import EMPTY
from edgeattn.train import Recipe, TrainingData, train
from edgeattn.train.augment import Augment
from edgeattn.train.loader import FolderViews, PictureFiles
from edgeattn.train.loop import figure

LABELS = tuple("0123456789")
TEACHERS, STUDENTS = 80, 40
"""People whom the teacher learns from, and people from whom each student's are drawn; all others judge."""
MILD = Augment(rotate=10.0, scale=(0.75, 1.1), brightness=0.25, colour=0.2)
"""Hands hardly differ in size here; with the default the nets learn more slowly."""
ARMS = "none,wide,se,eca,coord,cbam_lite,spatial,srm,simam,shsa"


def pictures_of(root: Path, people: Collection[str]) -> list[Sample]:
    """The pictures of these people."""
    with (root / "train.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [Sample(root / row["file"], int(row["label"])) for row in rows if row["participant"] in people]


def draw_people(root: Path, seed: int, count: int) -> tuple[list[str], list[str], list[str]]:
    """The teacher's people, those of a student, and those who judge."""
    with (root / "train.csv").open(newline="") as stream:
        found = sorted({row["participant"] for row in csv.DictReader(stream)})
    people = [str(one) for one in np.random.default_rng(0).permutation(found)]
    pool = people[TEACHERS : TEACHERS + STUDENTS]
    chosen = [str(one) for one in np.random.default_rng(seed).permutation(pool)[:count]]
    return people[:TEACHERS], chosen, people[TEACHERS + STUDENTS :]


def open_people(root: Path, recipe: Recipe, learn: Collection[str], judge: Collection[str]) -> TrainingData:
    """Pictures of some people to train on, of others to judge by."""
    views = FolderViews(pictures_of(root, learn), recipe.input, recipe.augment)
    judged = pictures_of(root, judge)
    return TrainingData(LABELS, views, PictureFiles(judged[::10]), PictureFiles(judged))


def main() -> None:
    """Train what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the sign-digits pack")
    parser.add_argument("--people", default="4,8,16", help="how many, by commas (default: %(default)s)")
    parser.add_argument("--attention", default=ARMS, help="arms, by commas (default: %(default)s)")
    parser.add_argument("--teach", default="labels,dist", help="labels, or methods (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--views", type=int, default=20_000, help="of every run (default: %(default)s)")
    parser.add_argument("--imgsz", type=int, default=64)
    parser.add_argument("--runs", type=Path, default=Path("runs/few-shot"))
    parser.add_argument("--results", type=Path, default=Path("evidence/few-shot.jsonl"))
    options = parser.parse_args()
    base = replace(
        workflow.photo_recipe(options.root, model="pico", attention="none", imgsz=options.imgsz, teacher="none"),
        start="none", batch_size=8, lr=0.016, mixup=0.0, augment=MILD,
    )  # fmt: skip
    teacher = options.runs / "teacher"
    if options.teach != "labels":
        # Smoothed labels would wipe out what it knows of the other classes (Mueller et al. 2019, arXiv:1906.02629).
        wanted = replace(workflow.teacher_recipe(base), epochs=60, lr=0.0016, label_smoothing=0.0, augment=MILD)
        known, _, unknown = draw_people(options.root, 0, 0)
        data = open_people(options.root, wanted, known, unknown)
        with taken(teacher, wait=True):
            found = train(wanted, teacher, data=data, resume=True)
        knows = figure(found.model, data.test, found.recipe, LABELS)
        print(f"teacher: {knows:.1%} of {len(data.test)} pictures of people whom nobody learns from", flush=True)
    grid = [
        (seed, count, teach, attention)
        for seed in range(options.seeds)
        for count in map(int, options.people.split(","))
        for teach in options.teach.split(",")
        for attention in options.attention.split(",")
    ]
    for seed, count, teach, attention in grid:
        matched = attention not in EMPTY
        recipe = replace(base, attention=attention, equal_cost_to="plain" if matched else "", seed=seed)
        if teach != "labels":
            recipe = replace(recipe, teacher=str(teacher), distill=teach)
        recipe = replace(recipe, epochs=round(options.views / (10 * count)))
        _, learn, judge = draw_people(options.root, seed, count)
        open_it = functools.partial(open_people, options.root, recipe, learn, judge)
        folder = options.runs / f"{count}-{teach}" / f"{attention}-{seed}"
        run_once(recipe, folder, open_it, f"sign-digits, {count} people", options.results, int8=False)


if __name__ == "__main__":
    main()
