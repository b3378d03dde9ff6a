"""Does attention pay? A grid of attention x teaching x seed on one data set, at equal cost, with paired intervals.

    tar xf cifar10.tar.gz && python tools/evidence.py cifar10 --attention none,wide,se --seeds 5 --epochs 30
    python tools/evidence.py --tables evidence/cifar10.jsonl

The data is a folder of class folders, or of CIFAR's official binaries. Choices belong on the validation part; the test part is
looked at once, when a run has ended. Attentions are made as dear as the plain net (`equal_cost_to=plain`) in EdgeMeta's sizes.
A finished run leaves a line in evidence/NAME.jsonl, with the environment and the code's revision; what is there is not run
again, and a killed run goes on from its last checkpoint. Started more than once, on a core each (`taskset -c 0 python ...`,
`taskset -c 1 python ...`), the grid is shared. --tables prints Markdown and writes NAME.csv and NAME.tex beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import functools
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeattn import workflow
from edgeattn.deploy.export import recipe_digest
from edgeattn.errors import EdgeAttnError
from edgeattn.evaluation.significance import holm, paired_interval, paired_p
from edgeattn.nn.attention import EMPTY
from edgeattn.nn.backbone import SIZES
from edgeattn.nn.cost import cost
from edgeattn.spec import to_json
from edgeattn.timing.environment import environment
from edgeattn.train import Recipe, TrainingData, train
from edgeattn.train.augment import Augment
from edgeattn.train.loop import figure
from edgeattn.train.machine import executed_precision
from edgeattn.train.runs import load_metrics
from edgeattn.train.sources import open_data

CIFAR = Augment(
    rotate=0.0, scale=(1.0, 1.0), aspect=1.0, shift=0.125, brightness=0.1, colour=0.1, blur=0.0, noise=0.0, erase=0.5
)
"""A shift of four pixels, mirroring, now and then a covered part."""
GRID = Recipe("", imgsz=32, batch_size=128, lr=0.004, label_smoothing=0.1, mixup=0.2, ema=0.05, augment=CIFAR)
"""What all runs of the grid have in common, but for what the command line says."""
CONTROLS = ("none", "wide")
OWN = ("data", "model", "attention", "equal_cost_to", "imgsz", "teacher", "distill", "epochs", "precision", "seed")
"""Fields of a recipe that a line names by themselves, or that follow from those."""
FEWEST = 3
"""Runs that an interval is told of: two that happen to agree would have one of no width."""
HARMLESS = ("workers", "compile")
"""Fields that change how long a run takes."""


def recipe_for(options: argparse.Namespace, attention: str, teach: str, seed: int) -> Recipe:
    """One cell of the grid."""
    matched = options.model in SIZES and attention not in EMPTY and attention not in CONTROLS
    teacher, distill = (options.teacher, teach) if teach != "labels" else ("none", "kd")
    return replace(
        GRID, data=str(options.data), model=options.model, attention=attention, equal_cost_to="plain" if matched else "",
        imgsz=options.imgsz, teacher=teacher, distill=distill, epochs=options.epochs, seed=seed,
        precision=options.precision, compile=options.compile,
    )  # fmt: skip


def settings(recipe: Recipe) -> dict[str, Any]:
    """What else a recipe says otherwise than by default; fields that are new one day change no older line."""
    told, default = to_json(recipe), to_json(Recipe(""))
    return {name: told[name] for name in told if name not in OWN + HARMLESS and told[name] != default[name]}


UNTOLD = {"imgsz": 32, "teacher": "none", "recipe": settings(GRID)}
"""What lines hold that do not say so: those that were written before 2026-11-23."""


def cell(recipe: Recipe, name: str) -> dict[str, Any]:
    """What tells a run on the data set called `name`, on this machine, apart from others."""
    teach = recipe.distill if recipe.teacher != "none" else "labels"
    return {
        "dataset": name, "model": recipe.model, "attention": recipe.attention, "teach": teach, "epochs": recipe.epochs,
        "seed": recipe.seed, "precision": executed_precision(recipe.precision), "imgsz": recipe.imgsz,
        "teacher": recipe.teacher, "recipe": settings(recipe),
    }  # fmt: skip


def arms(options: argparse.Namespace) -> list[str]:
    """The attentions to run; a model without perceptrons to widen has no `wide`."""
    asked = str(options.attention).split(",")
    if options.model in SIZES or "wide" not in asked:
        return asked
    print(f"without the arm wide: {options.model} has no perceptrons that could be wider", flush=True)
    return [attention for attention in asked if attention != "wide"]


def folder_of(recipe: Recipe, name: str, runs: Path) -> Path:
    """Where a cell's run lies: what is not as in most grids has a place of its own."""
    told = cell(recipe, name)
    other = {key: told[key] for key in UNTOLD if told[key] != UNTOLD[key]}
    grid = f"{name}-{recipe.model}-{recipe.epochs}" + (f"-{recipe_digest(other)[:8]}" if other else "")
    return runs / grid / f"{recipe.attention}-{told['teach']}-{recipe.seed}"


def run_once(
    recipe: Recipe, folder: Path, open_it: Callable[[], TrainingData], name: str, file: Path, *, int8: bool = True
) -> None:
    """Run a cell of a grid, add its line to `file` and print it; nothing where the file holds it, or another process runs it."""
    with taken(folder) as free:
        if not free or any(cell(recipe, name).items() <= line.items() for line in runs(file)):
            return
        line = run(recipe, folder, open_it(), name, int8=int8)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
    told = f"{name}: {line['attention']} {line['teach']} seed {line['seed']}"
    print(f"{told}: test {100 * line['test_top1']:.2f} %", flush=True)


@contextlib.contextmanager
def taken(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether `folder` could be taken; it is free again at the end, however the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "taken").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def run(recipe: Recipe, folder: Path, data: TrainingData, name: str, *, int8: bool = True) -> dict[str, Any]:
    """Train, then look at the test part once: the trained net, and its int8 files through their engines."""
    trained = train(recipe, folder, data=data, resume=True)
    found = cost(trained.model, recipe.imgsz)
    line = cell(recipe, name) | {
        "parameters": found.parameters, "macs": found.macs,
        "validation_top1": round(trained.metrics["validation_top1"], 5),
        "test_n": len(data.test), "test_top1": round(figure(trained.model, data.test, recipe, data.labels), 5),
        "seconds": training_seconds(folder),
    }  # fmt: skip
    if not int8:
        return line | {"revision": revision(), "environment": environment()}
    try:
        bundle = workflow.export_run(trained, data, folder / "bundle")
        report = workflow.quantize_run(bundle, replace(data, validation=data.test), folder).report
        line["int8"] = {
            r.engine: {"top1": r.figure, "map_js": r.map_js, "map_rank": r.map_rank, "verdict": r.verdict}
            for r in report.results
            if r.precision == "int8"
        }
    except EdgeAttnError as error:
        line["int8_error"] = str(error)
    return line | {"revision": revision(), "environment": environment()}


def training_seconds(folder: Path) -> float | None:
    """Of all epochs of a run, over its interruptions; None where an older version trained some of them."""
    epochs = load_metrics(folder)
    return round(sum(epoch["seconds"] for epoch in epochs), 1) if all("seconds" in epoch for epoch in epochs) else None


def revision() -> str:
    """The code's revision, marked where it was changed since."""
    here = Path(__file__).parent
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


def lines(file: Path) -> list[dict[str, Any]]:
    """What a file of JSON lines holds; nothing where there is none."""
    return [json.loads(text) for text in file.read_text().splitlines() if text.strip()] if file.is_file() else []


def runs(file: Path) -> list[dict[str, Any]]:
    """The finished runs of a file, each with all that `cell` tells."""
    told = [UNTOLD | line for line in lines(file)]
    # Before what was executed was told, it was what was asked; all that was asked to be `auto` ran on processors.
    return [line | {"precision": "float32"} if line["precision"] == "auto" else line for line in told]


class Arm(NamedTuple):
    """What is compared on the same seeds."""

    attention: str
    teach: str
    teacher: str


def table(rows: Sequence[dict[str, Any]], prices: dict[str, float]) -> Iterator[dict[str, str]]:
    """A row for each arm: accuracy with its interval, paired differences, int8, maps, price (int8's time over the plain net's).

    Runs are compared with their like alone: on the same data, of the same model, size, length, precision and recipe. An arm
    is compared with both controls taught likewise, and where it has a teacher, with itself taught by the labels.
    """
    groups: dict[tuple[Any, ...], dict[Arm, dict[int, dict[str, Any]]]] = {}
    for r in rows:
        recipe = recipe_digest(r["recipe"])[:8]
        group = (r["dataset"], r["model"], r["imgsz"], r["epochs"], r["precision"], recipe)
        arm = Arm(r["attention"], r["teach"], r["teacher"])
        groups.setdefault(group, {}).setdefault(arm, {})[r["seed"]] = r
    for group, by in sorted(groups.items()):
        against = {f"against {control}": _paired(by, attention=control) for control in CONTROLS}
        against["against labels"] = _paired(by, teach="labels", teacher="none")
        for arm in sorted(by, key=lambda arm: (arm.attention not in CONTROLS, arm)):
            runs = list(by[arm].values())
            mean, half = paired_interval(np.array([100 * r["test_top1"] for r in runs]))
            told = f"{mean:.2f} ± {half:.2f}" if len(runs) >= FEWEST else f"{mean:.2f}"
            row = dict(
                zip(("dataset", "model", "imgsz", "epochs", "precision", "recipe"), map(str, group), strict=True)
            )
            row |= {
                "attention": arm.attention,
                "taught by": arm.teach if arm.teacher == "none" else f"{arm.teach} of {arm.teacher}",
                "n": str(len(runs)), "test top-1 %": told,
            }  # fmt: skip
            row |= {name: gains.get(arm, "-") for name, gains in against.items()}
            for engine in ("onnxruntime", "openvino"):
                int8 = [100 * r["int8"][engine]["top1"] for r in runs if engine in r.get("int8", {})]
                fewer = f" (n {len(int8)})" if len(int8) < len(runs) else ""
                row[f"int8 {engine} %"] = f"{np.mean(int8):.2f}{fewer}" if int8 else "-"
            drift = [i["map_js"] for r in runs for i in r.get("int8", {}).values() if i["map_js"] is not None]
            row["maps moved"] = f"{np.median(drift):.3f}" if drift else "-"
            row["price"] = f"{prices[arm.attention]:.2f}" if arm.attention in prices else "-"
            yield row


def _paired(by: dict[Arm, dict[int, dict[str, Any]]], **other: str) -> dict[Arm, str]:
    """Each arm's gain over the one that is otherwise in this alone, seed by seed; p corrected for the number of arms."""
    gains = {}
    for arm, runs in by.items():
        base = by.get(arm._replace(**other), {})
        shared = sorted(runs.keys() & base.keys())
        if base is not runs and len(shared) >= FEWEST:
            gains[arm] = np.array([100 * (runs[s]["test_top1"] - base[s]["test_top1"]) for s in shared])
    corrected = holm([paired_p(gain) for gain in gains.values()])
    told = {}
    for (arm, gain), p in zip(gains.items(), corrected, strict=True):
        mean, half = paired_interval(gain)
        told[arm] = f"{mean:+.2f} ± {half:.2f} (n {len(gain)}, p {p:.3f})"
    return told


def write_tables(file: Path, prices_file: Path | None) -> None:
    """Markdown on the screen, CSV and LaTeX beside the results."""
    prices: dict[str, float] = {}
    if prices_file is not None:
        found = json.loads(prices_file.read_text())["prices"]
        prices = {
            p["mechanism"]: p["int8_over_none"] for p in found if p["engine"] == "openvino" and p["int8_over_none"]
        }
    rows = list(table(runs(file), prices))
    if not rows:
        raise SystemExit(f"{file} holds no finished runs; run the grid first")
    heads = list(rows[0])
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")
    with file.with_suffix(".csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, heads)
        writer.writeheader()
        writer.writerows(rows)
    escaped = [
        [cell.replace("%", r"\%").replace("_", r"\_").replace("±", r"$\pm$") for cell in cells]
        for cells in (heads, *(list(row.values()) for row in rows))
    ]
    body = "\n".join(" & ".join(cells) + r" \\" for cells in escaped)
    file.with_suffix(".tex").write_text(f"\\begin{{tabular}}{{{'l' * len(heads)}}}\n{body}\n\\end{{tabular}}\n")


def main() -> None:
    """Run what is not there yet, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="class folders, or CIFAR's binaries; not with --tables")
    parser.add_argument("--name", help="of the data set in the results (default: the folder's)")
    parser.add_argument("--attention", default="none,wide,se", help="arms, by commas (default: %(default)s)")
    parser.add_argument("--model", default="pico", help="pico, nano, tiny, small or resnet20 (default: %(default)s)")
    parser.add_argument(
        "--teach", default="labels", help="labels, or methods with --teacher: dist,kd+at (default: %(default)s)"
    )
    parser.add_argument("--teacher", default="none", help="as edgeattn train takes it")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--imgsz", type=int, default=32)
    parser.add_argument("--precision", default="auto", help="as `train` takes it (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="with torch.compile: minutes a run, then faster steps")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--results", type=Path, default=Path("evidence"))
    parser.add_argument("--tables", type=Path, help="print the tables of this file of results, and stop")
    parser.add_argument("--prices", type=Path, help="what `edgeattn attentions --measure --json` wrote, for the tables")
    options = parser.parse_args()
    if options.tables:
        write_tables(options.tables, options.prices)
        return
    if options.data is None:
        parser.error("name the data: class folders, or CIFAR's binaries")
    name = options.name or options.data.resolve().name
    file = options.results / f"{name}.jsonl"
    # Once for all, and not where nothing is left to run.
    open_it = functools.cache(lambda: open_data(recipe_for(options, "none", "labels", 0), options.runs))
    asked = arms(options)
    # Seed by seed, so that an interrupted grid has whole pairs.
    for seed in range(options.seeds):
        for teach in options.teach.split(","):
            for attention in asked:
                recipe = recipe_for(options, attention, teach, seed)
                run_once(recipe, folder_of(recipe, name, options.runs), open_it, name, file)


if __name__ == "__main__":
    main()
