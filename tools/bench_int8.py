"""What int8 buys on this machine: float against int8 of one model with each attention, all in turns, one thread.

    python tools/bench_int8.py --pictures ~/edge-data/imagenet1k-sample/images --model nano --imgsz 224

The weights are random (with norms that have seen the pictures): these are speeds, not accuracies. Beside each time stands the
share that it is of what the processor can do at best in that precision, measured before (see `edgeattn.profiling.peaks`).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from edgeattn.bundle import Bundle
from edgeattn.deploy import export, quantize
from edgeattn.imaging import Picture, list_pictures, prepare, read_picture
from edgeattn.nn import build_model
from edgeattn.nn.cost import cost
from edgeattn.profiling import profile
from edgeattn.profiling.peaks import measure_peaks
from edgeattn.spec import InputSpec
from edgeattn.timing import environment


def build(model: str, attention: str, imgsz: int, pictures: list[Picture], folder: Path) -> Bundle:
    """A bundle of a net with random weights, in float and int8."""
    torch.manual_seed(0)
    net = build_model(model, 10, attention=attention, imgsz=imgsz).train()
    spec = InputSpec(imgsz, imgsz)
    batch = torch.from_numpy(np.concatenate([prepare(picture, spec) for picture in pictures[:16]]))
    with torch.no_grad():
        for _ in range(20):
            net((batch.permute(0, 3, 1, 2).float() - 128) / 128)
    labels = [f"class {i}" for i in range(10)]
    exported = export(
        net.eval(), folder / attention, labels=labels, imgsz=imgsz, pictures=pictures[:4], mechanism=attention
    )
    return quantize(exported, pictures[:32], [(picture, 0) for picture in pictures[32:40]]).bundle


def main() -> None:
    """Build, profile and print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="folder with 40 pictures or more")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--imgsz", type=int, default=224)
    parser.add_argument("--attention", default="none,se,eca,coord", help="names, by commas")
    parser.add_argument("--samples", type=int, default=300)
    options = parser.parse_args()
    pictures = [read_picture(path) for path in list_pictures(options.pictures)[:40]]
    machine, peaks = environment(), measure_peaks(threads=1)
    print(f"{options.model} at {options.imgsz}, one thread, medians in ms; {machine['cpu']}")
    told = ("f32", peaks.f32_gops), ("bf16", peaks.bf16_gops), ("int8", peaks.int8_gops)
    print("at best: " + ", ".join(f"{name} {gops:.0f} GOP/s" for name, gops in told if gops))
    print(
        f"{'attention':10} {'engine':12} {'float':>7} {'int8':>7} {'int8/float':>10} {'of peak: float':>15} {'int8':>6}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for attention in options.attention.split(","):
            macs = cost(build_model(options.model, 10, attention=attention, imgsz=options.imgsz), options.imgsz).macs
            bundle = build(options.model, attention, options.imgsz, pictures, Path(scratch))
            report = profile(bundle, threads=1, samples=options.samples).to_json()
            by = {(r["engine"], r["precision"]): r["latency_ms"]["p50"] for r in report["results"]}
            for engine in ("openvino", "onnxruntime"):
                slow, fast = by[engine, "float"], by[engine, "int8"]
                shares = [peaks.efficiency(macs, ms, kind) for ms, kind in ((slow, "float"), (fast, "int8"))]
                of_peak = [f"{100 * share:.0f} %" if share else "-" for share in shares]
                print(
                    f"{attention:10} {engine:12} {slow:7.2f} {fast:7.2f} {fast / slow:10.2f} {of_peak[0]:>15} {of_peak[1]:>6}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
