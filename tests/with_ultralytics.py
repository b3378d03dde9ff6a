"""A classifier that ultralytics exports, in edgeattn: the same answers as its own predict. Not part of the test suite, since it
wants packages that ask for another torch; none of their weights is used, and nothing is downloaded:

    pip install --no-deps --target other ultralytics torchvision         # beside edgeattn[dev,headless]
    PYTHONPATH=other YOLO_CONFIG_DIR=other python tests/with_ultralytics.py images.csv FOLDER

yolo11n-cls is built from its configuration, its batch norms see the pictures, and its last layer is made decided; ultralytics'
own exporter writes FOLDER/*.onnx and FOLDER/*_openvino_model/, and `edgeattn import` makes bundles of both. Given the input
that ultralytics makes of a picture, each engine must give its class and its probabilities within `BOUND`, on all pictures. What
our own preparation of the picture changes is printed: ultralytics resizes by Pillow, which averages; we resize by OpenCV.
Detectors: `with_ultralytics_detect.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for _operator in ("nms", "qnms"):  # of another torch, torchvision's own library is not loaded; nothing here needs it
    _OPERATORS.define(f"{_operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")

import ultralytics  # noqa: E402
import yaml  # noqa: E402

from edgeattn._cv2 import cv2  # noqa: E402
from edgeattn.bundle import Bundle, load  # noqa: E402
from edgeattn.cli import main as edgeattn  # noqa: E402
from edgeattn.datasets.labelled import labelled_pictures  # noqa: E402
from edgeattn.engines import open_engine  # noqa: E402
from edgeattn.imaging import prepare, read_picture  # noqa: E402

PICTURES = 20
SIDE = 224
SPREAD = 4.0
"""Standard deviation of the logits over classes and pictures."""
BOUND = 1e-3
"""Greatest difference of a probability."""


def main() -> None:
    """Export, import, compare."""
    table, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    names = yaml.safe_load((Path(ultralytics.__file__).parent / "cfg/datasets/ImageNet.yaml").read_text())["names"]
    samples = labelled_pictures(table, list(names.values()))
    chosen = [samples[i].path for i in np.random.default_rng(0).permutation(len(samples))[:PICTURES]]
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    model = decided(chosen, names)
    pictures = [cv2.imread(str(path)) for path in chosen]  # its own reading: no turn by EXIF in either
    theirs = [row.probs.data.numpy() for row in model.predict(pictures, imgsz=SIDE, verbose=False)]
    inputs = [model.predictor.preprocess([picture]).numpy() for picture in pictures]
    print(f"{len({int(row.argmax()) for row in theirs})} classes on {PICTURES} pictures")
    exported = [model.export(format="onnx", imgsz=SIDE, simplify=False), model.export(format="openvino", imgsz=SIDE)]
    failed = 0
    for file in exported:
        bundle = imported(file, table, folder / f"{Path(file).name}.edgeattn")
        failed += sum(compared(bundle, artefact.engine, chosen, inputs, theirs) for artefact in bundle.artefacts)
    sys.exit(failed > 0)


def decided(files: list[Path], names: dict[int, str]) -> Any:
    """The model, whose answers differ from picture to picture."""
    torch.manual_seed(0)
    model = ultralytics.YOLO("yolo11n-cls.yaml")
    model.ckpt_path = "yolo11n-cls.pt"  # the exporter names its files after it
    net = model.model
    net.names = names
    x_N3HW = seen(net, files, SIDE)
    with torch.no_grad():
        linear = net.model[-1].linear
        features_NC: list[torch.Tensor] = []
        handle = linear.register_forward_hook(lambda _, given, __: features_NC.append(given[0]))
        net(x_N3HW)
        handle.remove()
        logits_NK = linear(features_NC[0])
        linear.bias -= logits_NK.mean(0)
        scale = SPREAD / (logits_NK - logits_NK.mean(0)).std()
        linear.weight *= scale
        linear.bias *= scale
    return model


def seen(net: Any, files: list[Path], side: int) -> torch.Tensor:
    """Let the batch norms of a net see pictures, and give these: (N, 3, side, side)."""
    x_N3HW = torch.stack([torch.from_numpy(cv2.resize(cv2.imread(str(f)), (side, side))) for f in files])
    x_N3HW = x_N3HW.flip(3).permute(0, 3, 1, 2).float() / 255
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of what it sees
            module.reset_running_stats()
    with torch.no_grad():
        net.train()(x_N3HW)
    net.eval()
    return x_N3HW


def imported(file: str, data: Path, out: Path) -> Bundle:
    """What `edgeattn import` makes of it."""
    sys.argv = ["edgeattn", "import", str(file), "--data", str(data), "--out", str(out)]
    try:
        edgeattn()
    except SystemExit as end:
        if end.code:
            raise
    return load(out)


def compared(
    bundle: Any, name: str, files: list[Path], inputs: list[np.ndarray[Any, Any]], theirs: list[np.ndarray[Any, Any]]
) -> bool:
    """Print how far an engine is from ultralytics, on its input and on ours; whether the first is too far."""
    engine = open_engine(bundle, engine=name, precision="float")
    spec = bundle.spec

    def ours(x: Any) -> np.ndarray[Any, Any]:
        logits = engine.infer(np.asarray(x, np.float32))[spec.output].ravel().astype(np.float64)
        powers = np.exp(logits - logits.max())
        return np.asarray(powers / powers.sum())

    on_theirs = [
        ours((x * 255 - np.reshape(spec.input.mean, (3, 1, 1))) / np.reshape(spec.input.std, (3, 1, 1))) for x in inputs
    ]
    prepared = [prepare(read_picture(file), spec.input) for file in files]
    on_ours = [ours(x) for x in prepared]
    engine.close()
    for what, found in (("its input", on_theirs), ("our input", on_ours)):
        same = sum(int(a.argmax() == b.argmax()) for a, b in zip(found, theirs, strict=True))
        off = [float(np.abs(a - b).max()) for a, b in zip(found, theirs, strict=True)]
        print(
            f"{bundle.name}, {name}, {what}: {same} of {len(found)} answers are the same, probabilities differ by "
            f"{max(off):.1e} at most, {np.mean(off):.1e} on average"
        )
        if what == "its input":
            failed = same != len(found) or max(off) > BOUND
    apart = [
        255 * np.abs(a * np.reshape(spec.input.std, (3, 1, 1)) / 255 - b) for a, b in zip(prepared, inputs, strict=True)
    ]
    print(f"  our input differs from its by {np.mean([a.mean() for a in apart]):.2f} of 255 on average")
    return failed


if __name__ == "__main__":
    main()
