"""Does teaching attention where to look move it there, and what does it cost in accuracy? On cards, whose masks are known.

    python tools/looking.py --out runs/looking --seeds 5

Each seed trains two nets alike but for the supervision of their maps, from the zoo's weights, and measures the exported float
file on validation cards: share of the mean map's attention that lies on the card, share of right answers. Prints the paired
differences with their 95 % intervals (Student's t over the seeds). Resumes where it was interrupted; other options want another
--out, but for the number of cards.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeattn import workflow
from edgeattn.datasets.cards import Cards
from edgeattn.deploy.verify import verify
from edgeattn.evaluation.significance import paired_interval
from edgeattn.spec import to_json
from edgeattn.train import Recipe, train
from edgeattn.train.sources import open_data


def measure(recipe: Recipe, folder: Path, cards: int) -> dict[str, float]:
    """Train, export, and look at validation cards."""
    data = open_data(recipe, folder)
    trained = train(recipe, folder, data=data, resume=True)
    bundle = workflow.export_run(trained, data, folder / "cards")
    held = Cards("validation", seed=recipe.split_seed, size=recipe.imgsz)
    samples = [held.sample(i) for i in range(cards)]
    shown = [(s.picture, s.label, s.mask.astype(np.float32)) for s in samples]
    (result,) = verify(bundle, shown, engines=["onnxruntime"], precisions=["float"]).results
    assert result.figure is not None
    return {"top1": round(result.figure, 4)} | {name: round(value, 4) for name, value in result.looking.items()}


def measured(recipe: Recipe, folder: Path, cards: int) -> dict[str, float]:
    """As `measure`; what was measured before of the same recipe on as many cards is read."""
    file = folder / "measured.json"
    asked = json.loads(json.dumps({"recipe": to_json(recipe), "cards": cards}))
    held = json.loads(file.read_text()) if file.is_file() else {}
    if held.get("asked") != asked:
        held = {"asked": asked, "found": measure(recipe, folder, cards)}
        file.write_text(json.dumps(held))
    return dict(held["found"])


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/looking"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--attention", default="cbam_lite")
    parser.add_argument("--supervise", default="kl", help="kl, ce, bce or cosine (default: %(default)s)")
    parser.add_argument(
        "--weight", type=float, default=10.0, help="of the maps' loss; 0: its own (default: %(default)s)"
    )
    parser.add_argument(
        "--views", type=int, default=18_000, help="cards that each net learns from (default: %(default)s)"
    )
    parser.add_argument("--cards", type=int, default=1000, help="validation cards (default: %(default)s)")
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        plain = replace(
            workflow.demo_recipe(seed), attention=options.attention, epochs=3, views_per_epoch=options.views // 3
        )
        taught = replace(plain, supervise=options.supervise, supervise_weight=options.weight)
        row: dict[str, object] = {"seed": seed, "attention": options.attention, "views": options.views}
        for recipe in (plain, taught):
            folder = options.out / f"{options.attention}-{recipe.supervise}-{seed}"
            row[recipe.supervise] = measured(recipe, folder, options.cards)
        rows.append(row)
        print(json.dumps(row), flush=True)
    for name, unit in (("energy_inside", "points of attention inside"), ("top1", "points of top-1")):
        told, plain_ = (np.array([row[key][name] for row in rows]) for key in (options.supervise, "none"))  # type: ignore[index]
        gain = 100 * (told - plain_)
        mean, half = paired_interval(gain)
        print(
            f"{options.supervise} against none: {mean:+.1f} {unit}, 95 % interval {mean - half:+.1f} to {mean + half:+.1f}"
        )


if __name__ == "__main__":
    main()
