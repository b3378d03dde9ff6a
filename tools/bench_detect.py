"""How fast our detectors are beside another one, int8 in OpenVINO, in turns on one thread, without maps.

    pip install ultralytics    # in an environment of its own
    python -c "from ultralytics import YOLO; YOLO('yolo11n.yaml').export(format='onnx', imgsz=320)"
    python tools/bench_detect.py yolo11n.onnx --pictures ~/edge-data/det-cards/train

They take turns in two ways. One inference each: every net finds the caches full of the others' weights, as where a box runs
several nets. Rows of ten, of which the last eight count: each has the processor to itself, as where it alone runs.

The weights are random (with norms that have seen the pictures), the classes as many as the other one's: these are speeds, not
accuracies. Decoding is that of one frame with some boxes (`tasks.detect.decode`).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from edgeattn.bundle import Bundle
from edgeattn.deploy import export
from edgeattn.deploy.importing import import_model
from edgeattn.deploy.recipes import quantize_for
from edgeattn.engines import open_artefact
from edgeattn.engines.base import Engine
from edgeattn.imaging import Picture, list_pictures, prepare, read_picture
from edgeattn.nn.detector import Detector
from edgeattn.spec import InputSpec, Spec
from edgeattn.tasks import decode
from edgeattn.timing import environment
from edgeattn.timing.statistics import paired_ratio

FRAME = (480, 640)
"""Height and width of the frame that the boxes are put back into, in pixels."""
SEEN = 16
"""Boxes on it."""
WARM, ROW = 2, 8
"""Inferences of a row that bring its net into the caches, and those that count."""
WARM_UP = 10
"""First inferences of each net that do not count."""


def build(model: str, attention: str, peer: Spec, pictures: list[Picture], folder: Path) -> Bundle:
    """A bundle of a detector with random weights, in float, of the same size and labels as the other one."""
    torch.manual_seed(0)
    net = Detector(len(peer.labels), size=model, attention=attention, imgsz=peer.input.width).train()
    spec = InputSpec(peer.input.height, peer.input.width, fit="letterbox")
    batch = torch.from_numpy(np.concatenate([prepare(picture, spec) for picture in pictures[:8]]))
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # what it has seen last is what counts
    with torch.no_grad():
        net((batch.permute(0, 3, 1, 2).float() - 128) / 128)
    return export(
        net.eval(), folder / attention, labels=peer.labels, pictures=pictures[:2], task="detect", input=spec,
        mechanism=attention,
    )  # fmt: skip


def open_int8(bundle: Bundle, pictures: list[Picture], folder: Path) -> Engine:
    """Its int8 for OpenVINO, of the default recipe."""
    source = next(a for a in bundle.artefacts if a.engine == "openvino")
    inputs = [prepare(picture, bundle.spec.input) for picture in pictures]
    folder.mkdir()
    artefact, _ = quantize_for("openvino", bundle.file(source), folder, inputs)
    return open_artefact(bundle, artefact, threads=1, file=folder / artefact.file)


def in_turns(
    engines: dict[str, Engine], images: dict[str, np.ndarray], row: int, samples: int
) -> dict[str, list[float]]:
    """Times of each engine in milliseconds, `row` inferences at a turn; of a row of several the first `WARM` are left out."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    counted = max(1, row - WARM)
    for turn in range(-(-(WARM_UP + samples) // counted)):
        for name, engine in engines.items():
            for place in range(row):
                before = time.perf_counter()
                engine.infer(images[name])
                if turn * counted >= WARM_UP and place >= row - counted:
                    times[name].append(1e3 * (time.perf_counter() - before))
    return times


def decoding_ms(spec: Spec, outputs: dict[str, np.ndarray]) -> float:
    """Median time to turn outputs of this shape, with `SEEN` boxes, into boxes in the frame."""
    answer = np.zeros_like(outputs[spec.output])
    answer[0, :4] = 50.0
    answer[0, 4:, :: answer.shape[2] // SEEN] = 0.6
    times = []
    for _ in range(300):
        before = time.perf_counter()
        decode({spec.output: answer}, spec, FRAME)
        times.append(1e3 * (time.perf_counter() - before))
    return statistics.median(times)


def main() -> None:
    """Build, quantize, time in turns and print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="a detector's .onnx of a fixed size, as ultralytics exports it")
    parser.add_argument("--pictures", type=Path, required=True, help="folder with 24 pictures or more")
    parser.add_argument("--model", default="pico")
    parser.add_argument("--attention", default="none,eca,coord", help="names, by commas")
    parser.add_argument("--samples", type=int, default=300, help="inferences of each net, either way")
    options = parser.parse_args()
    pictures = [read_picture(path) for path in list_pictures(options.pictures)[:24]]
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        peer = import_model(options.other, folder / "other", [(picture, 0) for picture in pictures[:8]]).bundle
        bundles = {options.other.stem: peer} | {
            f"{options.model} {name}": build(options.model, name, peer.spec, pictures, folder)
            for name in options.attention.split(",")
        }
        engines = {name: open_int8(one, pictures, folder / f"{name} int8") for name, one in bundles.items()}
        for engine in engines.values():
            stack.callback(engine.close)
        images = {name: prepare(pictures[0], one.spec.input) for name, one in bundles.items()}
        size = peer.spec.input
        print(
            f"int8 in OpenVINO at {size.height}x{size.width}, {len(peer.spec.labels)} classes, one thread; {environment()['cpu']}"
        )
        for row, said in ((1, "one inference each in turns"), (WARM + ROW, f"rows of {WARM + ROW} in turns")):
            print(said)
            times = in_turns(engines, images, row, options.samples)
            for name, own in times.items():
                faster = paired_ratio(times[options.other.stem], own)
                told = f"as fast {faster.value:.2f} times ({faster.low:.2f} to {faster.high:.2f})"
                print(f"  {name:16} {statistics.median(own):7.2f} ms, {told}")
        name = list(bundles)[-1]
        print(f"decoding {decoding_ms(bundles[name].spec, engines[name].infer(images[name])):.2f} ms")


if __name__ == "__main__":
    main()
