"""Which attentions of the zoo does Qualcomm's compiler take whole, and do they answer right in its simulator?

    python tools/npu_sweep.py                                                       # pico at 64, from the zoo's weights
    python tools/npu_sweep.py --model nano --imgsz 224 --start none --views 320     # a line each, in the same file

Each is trained shortly on cards, so that its branch has learnt something and its norms have seen pictures, exported, quantized on
the data's calibration set, compiled and executed on 50 validation cards. It is green where the whole graph is one node and the
logits and every map differ from float's by less than 3 %. The compiler's log of one that is not stands in qualcomm/ beside the
results, and a finished line is not measured again without --again. Nothing here was measured on hardware.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evidence import lines, revision

from edgeattn import workflow
from edgeattn.deploy.npu.qualcomm import CHIPS, SIMULATED, CompileError, compile_qualcomm
from edgeattn.errors import EdgeAttnError
from edgeattn.imaging import prepare
from edgeattn.nn.attention import ATTENTIONS, EMPTY
from edgeattn.timing.bar import progress_bar
from edgeattn.train import TrainingData, train
from edgeattn.train.sources import open_data

HELD_OUT = 200
"""Validation cards; fifty of them become the golden inputs."""
LOG_LINES = 40
"""Lines of a log that are kept; the last ones tell."""


def key(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """What tells a line apart from others."""
    return {"attention": name, "model": options.model, "imgsz": options.imgsz, "chip": options.chip}


def measure(name: str, data: TrainingData, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Train, export and compile one: its line, and the compiler's log."""
    recipe = replace(
        workflow.demo_recipe(0), attention=name, model=options.model, imgsz=options.imgsz, start=options.start, epochs=1,
        views_per_epoch=options.views, lr=options.lr, batch_size=options.batch, workers=0,
    )  # fmt: skip
    folder = options.out / f"{options.model}-{options.imgsz}-{options.views}" / name
    told = key(options, name) | {"start": options.start, "views": options.views}
    try:
        trained = train(recipe, folder, data=data, resume=True, progress=False)
        bundle = workflow.export_run(trained, data, folder / name)
        assert data.calibration
        inputs = [prepare(picture, bundle.spec.input) for picture in data.calibration.pictures()]
        began = time.monotonic()
        made = compile_qualcomm(bundle, inputs, chip=options.chip)
    except EdgeAttnError as error:
        log = error.log if isinstance(error, CompileError) else ""
        reason = str(error).removeprefix(f"{folder / name}.edgeattn: ")
        return told | {"verdict": "failed", "reason": anonymous(reason)}, log
    gate = made.artefact.gates["simulated"]
    told |= {
        "top1": trained.metrics["validation_top1"], "verdict": gate["verdict"], "error": gate["value"],
        "maps": gate["maps"], "nodes": gate["nodes"], "weights": made.artefact.recipe["weights"],
        "pictures": made.artefact.recipe["pictures"], "n": gate["n"],
        "compile_s": gate["compile_s"], "seconds": round(time.monotonic() - began, 1),
        "toolchain": made.artefact.toolchain, "where": SIMULATED, "revision": revision(),
    }  # fmt: skip
    if gate["verdict"] != "passed":
        whole = gate["nodes"] == ["EPContext"]
        told["reason"] = "answers or maps differ too much" if whole else f"{len(gate['nodes'])} nodes in place of one"
    return told, made.log


def anonymous(text: str) -> str:
    """A text without folders and times of the machine that it comes from."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.\d]*\s*", "", text)
    return re.sub(r"(?<![\w.:/])(?:/[^\s/:'\"]+)+/([^\s/:'\"]+)", r"\1", text)


def trimmed(log: str) -> str:
    """The last lines of a log, each once, fit to be kept."""
    found = dict.fromkeys(line.rstrip() for line in anonymous(log).splitlines() if line.strip())
    return "\n".join(list(found)[-LOG_LINES:]) + "\n"


def keep(file: Path, told: dict[str, Any], log: str) -> None:
    """Write a line in the place of the one before, and the log of one that is not green."""
    named = {name: told[name] for name in ("attention", "model", "imgsz", "chip")}
    rows = [row for row in lines(file) if not named.items() <= row.items()]
    logs = file.with_suffix("")
    logs.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, told]))
    kept = logs / f"{told['attention']}-{told['model']}-{told['imgsz']}.log"
    kept.unlink(missing_ok=True)
    if told["verdict"] != "passed":
        kept.write_text(trimmed(log))


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: one a mechanism, the greens first."""
    heads = ("attention", "model", "verdict", "logits %", "maps %", "weights", "compile s", "reason")
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * len(heads)
    for row in sorted(rows, key=lambda r: (r["model"], r["imgsz"], r["verdict"] != "passed", r["attention"])):
        figures = [f"{100 * row[name]:.2f}" if name in row else "-" for name in ("error", "maps")]
        cells = (
            row["attention"], f"{row['model']} {row['imgsz']}", row["verdict"], *figures, row.get("weights", "-"),
            f"{row['compile_s']:.1f}" if "compile_s" in row else "-", row.get("reason", "").replace("|", ";")[:120],
        )  # fmt: skip
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure what is not measured yet, print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pico")
    parser.add_argument("--imgsz", type=int, default=64)
    parser.add_argument("--start", default="zoo", help="weights to start from: zoo, a run's folder or none")
    parser.add_argument("--views", type=int, default=1_200, help="cards that each learns from (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.008)
    parser.add_argument("--chip", default="sm8550", choices=sorted(CHIPS))
    parser.add_argument("--only", default="", help="these alone, by commas (default: all)")
    parser.add_argument("--again", action="store_true", help="measure also what is measured")
    parser.add_argument("--out", type=Path, default=Path("runs/npu-sweep"))
    parser.add_argument("--results", type=Path, default=Path("evidence/npu/qualcomm.jsonl"))
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [name for name in ATTENTIONS if name not in EMPTY]
    done = [] if options.again else lines(options.results)
    waiting = [name for name in names if not any(key(options, name).items() <= row.items() for row in done)]
    recipe = replace(workflow.demo_recipe(0), imgsz=options.imgsz, views_per_epoch=options.views)
    data = open_data(recipe, options.out / str(options.imgsz)) if waiting else None
    if data:
        data = replace(data, validation=[data.validation[i] for i in range(HELD_OUT)])
    with progress_bar(bool(waiting)) as bar:
        task = bar.add_task("compile", total=len(waiting), note="")
        for name in waiting:
            assert data
            bar.update(task, note=name)
            keep(options.results, *measure(name, data, options))
            bar.advance(task)
    rows = lines(options.results)
    print("\n".join(table(rows)))
    for model, imgsz in sorted({(row["model"], row["imgsz"]) for row in rows}):
        own = [row["verdict"] == "passed" for row in rows if (row["model"], row["imgsz"]) == (model, imgsz)]
        print(f"{model} at {imgsz}: {sum(own)} of {len(own)} green; {SIMULATED}")


if __name__ == "__main__":
    main()
