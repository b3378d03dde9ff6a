"""`edgeattn demo`: the whole way on the built-in pictures, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeattn.cli.common import as_task, console, need_training, say, write_json


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("demo"),
    task: Annotated[str, typer.Option(help="classify, detect or segment.")] = "classify",
    seed: Annotated[int, typer.Option(help="Seed of the pictures, the weights and the video.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the report there.")] = None,
) -> None:
    """Train on rendered cards, distil, quantize, run on a video with its attention drawn over it, and time it."""
    need_training("edgeattn demo")
    import time

    started = time.monotonic()
    from edgeattn import workflow
    from edgeattn.datasets.cards import write_video
    from edgeattn.tasks import FIGURES
    from edgeattn.train.sources import open_data

    chosen = as_task(task) or "classify"
    recipe = workflow.demo_recipe(seed, chosen)
    data = open_data(recipe, out)
    say(f"cards: digits on cards over photographs, rendered from seed {seed}; a stand-in for your own pictures")
    made = workflow.demo(recipe, data, out, progress=True, say=say)
    from edgeattn.cli.make import summary

    report = summary(made)
    bundle = made.quantized.bundle
    video = write_video(out / "cards.mp4", seed=seed)
    lived = _run(bundle.path, video, out)
    profiled = _profile(bundle.path, out)
    judged = FIGURES[chosen].key
    results = {(r["engine"], r["precision"]): r for r in report["results"]}
    write_json(
        json,
        {
            "schema": "edgeattn.demo/1",
            "seconds": round(time.monotonic() - started, 1),
            f"float_{judged}": results["onnxruntime", "float"][judged],
            f"int8_{judged}": min(r[judged] for (_, precision), r in results.items() if precision == "int8"),
            "video_accuracy": lived["accuracy"],
            "verdicts": {f"{e} {p}": r["verdict"] for (e, p), r in results.items()},
            "bundle": str(bundle.path),
            "report": str(out / "profile.json"),
            "video": str(out / "cards-attention.mp4"),
            "run": lived,
            "profile": profiled["results"],
        },
    )
    console.print(
        f"\ndone in {time.monotonic() - started:.0f} s: {lived['accuracy']:.1%} of the video's frames right",
        markup=False,
    )
    console.print(f"  look:       {out / 'cards-attention.mp4'}", markup=False)
    console.print(f"  latency:    {out / 'profile.json'}", markup=False)
    console.print(
        f"  your turn:  edgeattn make PHOTOS   (a folder of class folders), or edgeattn run {bundle.path} --source 0",
        markup=False,
    )


def _run(bundle: Path, video: Path, out: Path) -> dict[str, Any]:
    from edgeattn.cli.run import run

    run(str(bundle), source=[str(video)], sink=["mp4"], out=out / "cards-attention.mp4", json=out / "run.json")
    return _read(out / "run.json")


def _profile(bundle: Path, out: Path) -> dict[str, Any]:
    from edgeattn.cli.profile import profile

    profile(str(bundle), json=out / "profile.json")
    return _read(out / "profile.json")


def _read(report: Path) -> dict[str, Any]:
    from json import loads

    return loads(report.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
