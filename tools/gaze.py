"""Does attention learn to look where people look? A pico taught by gaze, against the map that any claim must beat.

    python tools/gaze.py ~/edge-data/osie-gaze --out runs/gaze

People look at the middle of a picture; so a Gaussian there is the baseline, as wide as suits these very pictures best. Trains
on the pack's `train/` with no labels at all, only KL to the density of fixations; a fifth of it is kept for choices (--part
tune). Then the files of the bundle, float and int8, look at `val/` through their engines: NSS and AUC-Judd at the fixated
points, each with the paired difference to the Gaussian and its 95 % interval over pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeattn import workflow
from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle
from edgeattn.datasets.folder import Sample
from edgeattn.deploy.calibration import draw
from edgeattn.engines import open_artefact
from edgeattn.evaluation.looking import auc_judd, centre_gaussian, nss
from edgeattn.evaluation.significance import paired_interval
from edgeattn.imaging import Picture, prepare, read_picture
from edgeattn.maps import mean_map
from edgeattn.spec import InputSpec
from edgeattn.train import Recipe, TrainingData, train
from edgeattn.train.augment import Augment
from edgeattn.train.loader import View

SHAPE = (300, 400)
"""Height and width of the pack's pictures; fixations are in these pixels."""
SIGMAS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
"""Widths of the centre Gaussian that are tried."""
MILD = Augment(
    rotate=4.0, scale=(0.85, 1.05), aspect=1.1, shift=0.04, brightness=0.2, colour=0.3, blur=0.0, noise=0.0, erase=0.0
)
"""Small moves, since the middle means something here."""


class GazeViews:
    """Pictures squashed to the input's square, since a crop would lose the fixations at both ends."""

    def __init__(self, files: Sequence[Path], spec: InputSpec, augment: Augment) -> None:
        self.pictures = [squash(read_picture(file), spec) for file in files]
        self.maps = [density(file, spec) for file in files]
        self.spec, self.augment = spec, augment

    def __len__(self) -> int:
        return len(self.pictures)

    def view(self, index: int, rng: np.random.Generator) -> View:
        """As `Views.view`."""
        picture, where = self.augment.pair(self.pictures[index], self.maps[index], self.spec, rng)
        return View(picture, 0, where)


def squash(picture: Picture, spec: InputSpec) -> Picture:
    """The whole picture in the input's square."""
    return np.asarray(cv2.resize(picture, (spec.width, spec.height), interpolation=cv2.INTER_AREA), np.uint8)


def density(file: Path, spec: InputSpec) -> NDArray[np.float32]:
    """The fixation density of a picture, 0 to 1, in the input's square."""
    found = cv2.imread(
        str(file.parent.with_name(file.parent.name + "_maps") / f"{file.stem}.png"), cv2.IMREAD_GRAYSCALE
    )
    assert found is not None, file
    return np.asarray(cv2.resize(found, (spec.width, spec.height)).astype(np.float32) / 255)


def open_gaze(root: Path, recipe: Recipe) -> TrainingData:
    """All of one class, so that labels teach nothing (a classifier wants two); every fifth training picture is for choices."""
    files = sorted((root / "train").glob("*.jpg"))
    kept, tune = [f for i, f in enumerate(files) if i % 5], files[::5]
    held = [(squash(read_picture(file), recipe.input), 0) for file in tune]
    calibration = draw(
        [Sample(file, 0) for file in kept], ("scene", "nothing"), root, seed=recipe.split_seed, licence="MIT"
    )
    return TrainingData(("scene", "nothing"), GazeViews(kept, recipe.input, recipe.augment), held, (), calibration)


def fixated(file: Path) -> NDArray[np.bool_]:
    """The points that people looked at, (300, 400)."""
    told = json.loads(file.parent.with_name(f"fixations_{file.parent.name}.json").read_text())[file.name]
    points = np.zeros(SHAPE, bool)
    for x, y, _ in (fixation for person in told for fixation in person):
        if 0 <= x < SHAPE[1] and 0 <= y < SHAPE[0]:
            points[int(y), int(x)] = True
    return points


Scores = dict[str, NDArray[np.float64]]


def judge(bundle: Bundle, files: Sequence[Path]) -> dict[str, Scores]:
    """NSS and AUC of the centre Gaussian, and of every block and the mean map of every artefact, by picture."""
    truth = [fixated(file) for file in files]
    middles = [centre_gaussian(SHAPE, sigma) for sigma in SIGMAS]
    best = max(middles, key=lambda m: float(np.mean([nss(m, t) for t in truth])))
    found: dict[str, list[NDArray[np.float64]]] = {"centre": [best] * len(files)}
    inputs = [prepare(squash(read_picture(file), bundle.spec.input), bundle.spec.input) for file in files]
    for artefact in bundle.artefacts:
        engine = open_artefact(bundle, artefact, maps=True)
        for image in inputs:
            answer = engine.infer(image)
            maps = {m.block: answer[m.output] for m in bundle.spec.maps}
            for name, one in maps.items():
                found.setdefault(f"{artefact.engine} {artefact.precision} {name}", []).append(one[0].astype(np.float64))
            found.setdefault(f"{artefact.engine} {artefact.precision} mean", []).append(mean_map(maps))
        engine.close()
    return {
        name: {
            "nss": np.array([nss(m, t) for m, t in zip(maps, truth, strict=True)]),
            "auc": np.array([auc_judd(m, t) for m, t in zip(maps, truth, strict=True)]),
        }
        for name, maps in found.items()
    }


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the osie-gaze pack")
    parser.add_argument("--out", type=Path, default=Path("runs/gaze"))
    parser.add_argument("--model", default="pico", help="pico, or lite (default: %(default)s)")
    parser.add_argument("--attention", default="bam")
    parser.add_argument("--imgsz", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--blocks", default="all", help="blocks that are taught (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=("tune", "val"), default="val", help="tune: the kept fifth of train/")
    options = parser.parse_args()
    recipe = replace(
        workflow.photo_recipe(options.root, model=options.model, attention=options.attention, imgsz=options.imgsz,
                              teacher="none", seed=options.seed),
        supervise="kl", supervise_weight=1.0, supervise_blocks=options.blocks, epochs=options.epochs, lr=options.lr,
        batch_size=32, mixup=0.0, dropout=0.0, label_smoothing=0.0, augment=MILD,
    )  # fmt: skip
    data = open_gaze(options.root, recipe)
    name = f"{options.model}-{options.attention}-{options.imgsz}-{options.blocks}-{options.epochs}-{options.seed}"
    folder = options.out / name
    trained = train(recipe, folder, data=data, resume=True)
    bundle = workflow.export_run(trained, data, folder / "gaze")
    if options.part == "val":
        bundle = workflow.quantize_run(bundle, data, folder).bundle
        files = sorted((options.root / "val").glob("*.jpg"))
    else:
        files = sorted((options.root / "train").glob("*.jpg"))[::5]
    scores = judge(bundle, files)
    centre = scores["centre"]
    print(f"{name} on {options.part}, {len(files)} pictures")
    print(f"{'centre Gaussian':44} NSS {centre['nss'].mean():.3f}  AUC {centre['auc'].mean():.4f}")
    for key, own in scores.items():
        if key == "centre" or (options.part == "tune" and not key.startswith("onnx")):
            continue
        parts = []
        for measure, digits in (("nss", 3), ("auc", 4)):
            mean, half = paired_interval(own[measure] - centre[measure])
            parts.append(f"{measure.upper()} {own[measure].mean():.{digits}f} ({mean:+.{digits}f} ± {half:.{digits}f})")
        print(f"{key:44} {'  '.join(parts)}")


if __name__ == "__main__":
    main()
