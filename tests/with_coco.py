"""Our reader and our figures beside COCO's own evaluation of COCO's own file, and int8 beside float. Not part of the test suite:

    python tests/with_coco.py ~/edge-data/det-coco-mini/instances_val.json [BUNDLE]

What is found is the truth, moved, with a fifth of the boxes lost, a tenth given another class, and as many invented. The same
boxes are told to `average_precision`, with what our reader makes of the file, and to faster-coco-eval (or pycocotools where it is
installed), with the file as it is: its ids of pictures and classes, its crowds. All figures must be equal. With a BUNDLE the
int8 files' answers are compared with float's, by the share of pictures that agree (`tasks.detect.agree`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.bundle import load
from edgeattn.cli.verify import Pictures
from edgeattn.datasets.annotated import Annotations
from edgeattn.datasets.coco import read_coco
from edgeattn.deploy import verify
from edgeattn.evaluation.detect import Finding, average_precision

try:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except ImportError:
    from faster_coco_eval import COCO
    from faster_coco_eval import COCOeval_faster as COCOeval

EQUAL = 1e-3
"""Greatest difference of the figures: ours hold boxes as single floats, clipped at the picture's edge."""


def main() -> None:
    """Print both evaluations, then the artefacts."""
    file = Path(sys.argv[1]).expanduser()
    read = read_coco(file)
    found = [moved(one, len(read.names), np.random.default_rng(i)) for i, one in enumerate(read.pictures)]
    ours = average_precision(read.pictures, found, read.names)
    theirs = by_coco(file, read, found)
    print(
        f"{len(read.pictures)} pictures, {sum(read.counts.values())} boxes, {', '.join(read.notes) or 'nothing to say'}"
    )
    print(f"mAP50 {ours.map50:.6f} ours, {theirs[1]:.6f} {COCOeval.__name__}'s; mAP {ours.map:.6f} and {theirs[0]:.6f}")
    for name in sys.argv[2:]:
        bundle = load(name)
        for result in verify(bundle, iter(Pictures(file, bundle.spec))).results:
            print(
                f"{result.engine} {result.precision}: mAP50 {result.figure:.4f}, as float on {result.agreement:.1%} of {result.n}"
            )
    sys.exit(max(abs(ours.map50 - theirs[1]), abs(ours.map - theirs[0])) > EQUAL)


def moved(truth: Any, classes: int, rng: np.random.Generator) -> Finding:
    """What a middling detector might find of a picture."""
    boxes, labels = truth.boxes[~truth.crowd], truth.labels[~truth.crowd]
    kept = rng.random(len(boxes)) >= 0.2
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = (boxes + rng.normal(0, 0.1, boxes.shape) * sides)[kept]
    labels = np.where(rng.random(kept.sum()) < 0.1, rng.integers(0, classes, kept.sum()), labels[kept])
    height, width = truth.shape
    invented = np.sort(rng.uniform(0, 1, (len(boxes), 2, 2)), axis=1).reshape(-1, 4) * [width, height, width, height]
    boxes = np.concatenate([boxes, invented]).astype(np.float32)
    labels = np.concatenate([labels, rng.integers(0, classes, len(invented))])
    scores = np.concatenate([rng.uniform(0.2, 1, kept.sum()), rng.uniform(0, 0.6, len(invented))])
    return Finding(boxes, labels, scores.astype(np.float32))


def by_coco(file: Path, read: Annotations, found: list[Finding]) -> tuple[float, float]:
    """mAP and mAP50 by COCO's evaluation."""
    true = COCO(str(file))
    images = {image["file_name"]: image["id"] for image in true.dataset["images"]}
    categories = {category["name"]: category["id"] for category in true.dataset["categories"]}
    answers = [
        {
            "image_id": images[one.path.name],
            "category_id": categories[read.names[label]],
            "bbox": [float(left), float(top), float(right - left), float(low - top)],
            "score": float(score),
        }
        for one, seen in zip(read.pictures, found, strict=True)
        for (left, top, right, low), label, score in zip(seen.boxes, seen.labels, seen.scores, strict=True)
    ]
    judge = COCOeval(true, true.loadRes(answers), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return float(judge.stats[0]), float(judge.stats[1])


if __name__ == "__main__":
    main()
