"""Does every attention of the zoo survive int8? Trains each in a pico, quantizes it, and prints how its gates ended.

    edgeattn demo && python tools/zoo_int8.py --start demo/student --out runs/zoo-int8

Each starts from a finished run on cards, of which only the attention is new, and learns until it knows them again; then it is
quantized for both engines by the default recipe and verified on 2,000 validation cards. What does not pass climbs the ladder
for --minutes. Resumes where it was interrupted; several at once share the work where each is given its own --only.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeattn import workflow
from edgeattn.deploy.results import Report
from edgeattn.errors import EdgeAttnError
from edgeattn.nn.attention import ATTENTIONS, EMPTY
from edgeattn.train import TrainingData, train
from edgeattn.train.sources import open_data


def measure(name: str, data: TrainingData, options: argparse.Namespace) -> dict[str, Any]:
    """Train one, quantize it: accuracy, loss and verdict by engine and precision."""
    recipe = replace(
        workflow.demo_recipe(0), attention=name, start=options.start, epochs=2, views_per_epoch=options.views // 2,
        lr=options.lr,
    )  # fmt: skip
    folder = options.out / name
    trained = train(recipe, folder, data=data, resume=True)
    try:
        bundle = workflow.export_run(trained, data, folder / name)
        report = workflow.quantize_run(bundle, data, folder).report
        told = {"attention": name} | _told(report, "int8")
        if options.minutes and any(result.verdict != "passed" for result in report.results):
            climbed = workflow.quantize_run(bundle, data, folder, minutes=options.minutes)
            told |= {key: one for key, one in _told(climbed.report, "climbed").items() if "climbed" in key}
    except EdgeAttnError as error:
        return {"attention": name, "error": str(error)}
    return told


def _told(report: Report, int8: str) -> dict[str, Any]:
    """What was measured by engine and precision, int8 under a name of its own."""
    return {
        f"{r.engine} {int8 if r.precision == 'int8' else r.precision}": {
            "top1": r.figure,
            "map_js": r.map_js,
            "map_rank": r.map_rank,
            "latency_ms": r.latency_ms,
            "gates": {gate: found["verdict"] for gate, found in r.gates.items()},
            "verdict": r.verdict,
        }
        for r in report.results
    }


def line(told: dict[str, Any]) -> str:
    """One attention's line."""
    if "error" in told:
        return f"{told['attention']:24} {told['error']}"
    parts = [f"{told['attention']:24} float {told['onnxruntime float']['top1']:.1%}"]
    for key in ("onnxruntime int8", "onnxruntime climbed", "openvino int8", "openvino climbed"):
        if int8 := told.get(key):
            floats = told[f"{key.partition(' ')[0]} float"]
            gates = ", ".join(f"{name} {verdict}" for name, verdict in int8["gates"].items())
            parts.append(f"{key} {int8['top1']:.1%} ({gates}; {int8['latency_ms'] / floats['latency_ms']:.2f}x)")
    return "  ".join(parts)


def main() -> None:
    """Measure what is not measured yet, print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", required=True, help="folder of a finished pico run on cards")
    parser.add_argument("--out", type=Path, default=Path("runs/zoo-int8"))
    parser.add_argument("--only", default="", help="these alone, by commas (default: all)")
    parser.add_argument("--views", type=int, default=6_000, help="cards that each learns from (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.008)
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="on the ladder, of each that does not pass (default: %(default)s)"
    )
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [name for name in ATTENTIONS if name not in EMPTY]
    data = open_data(replace(workflow.demo_recipe(0), views_per_epoch=options.views // 2), options.out)
    for name in names:
        file = options.out / f"{name}.json"
        if not file.is_file():
            told = measure(name, data, options)
            file.write_text(json.dumps(told, indent=1))
        print(line(json.loads(file.read_text())), flush=True)
    everything = [json.loads(file.read_text()) for file in sorted(options.out.glob("*.json"))]
    for engine in ("onnxruntime", "openvino"):
        ways = [[told.get(f"{engine} {way}", {}).get("verdict") for told in everything] for way in ("int8", "climbed")]
        either = sum("passed" in (default, climbed) for default, climbed in zip(*ways, strict=True))
        print(
            f"{engine}: passed {ways[0].count('passed')} of {len(everything)} by the default recipe, {either} with the ladder"
        )


if __name__ == "__main__":
    main()
