"""Detectors that ultralytics exports, in edgeattn: the same boxes as its own predict. Not part of the test suite; see
`with_ultralytics.py` for what it wants:

    PYTHONPATH=other YOLO_CONFIG_DIR=other python tests/with_ultralytics_detect.py PICTURES FOLDER [MODEL ...]

yolo11n (proposals, suppressed by us) and yolo26n (one box each), and both with masks (-seg), are built from their configurations
at 320x320; their batch norms see the pictures, and the last layers of their heads are spread, so that some boxes pass the
threshold. Each is exported as ONNX and as OpenVINO IR and imported. On 20 pictures each engine must find ultralytics' boxes, and
no others: of the same classes, each overlapping its own by `OVERLAP`, with their masks. What decoding takes is printed by the
number of boxes that were told.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ultralytics
from with_ultralytics import PICTURES, imported, seen

import torchvision  # isort: skip
from ultralytics.utils.nms import TorchNMS

from edgeattn._cv2 import cv2
from edgeattn.engines import open_engine
from edgeattn.imaging import list_pictures, prepare, read_picture
from edgeattn.tasks import detect

SIDE = 320
MODELS = ("yolo11n", "yolo26n", "yolo11n-seg", "yolo26n-seg")
SAME_MASK = 0.98
"""What the masks of a box and its partner overlap by within their box, in the median."""
RARE = 6.0
"""How far below 0 the logits lie on average, in their standard deviations."""
OVERLAP, SLIVER = 0.99, 0.1
"""What a box's partner, of the same class, must overlap it by, or of slivers: be off by in pixels. All must have one; yolo11n
misses that on one of the 20 pictures, a heap of thousands of candidates cut off at 300: 16 to 21 of its 282 boxes differ."""
torchvision.ops.nms = TorchNMS.nms  # ultralytics' own: torchvision's library is not loaded


def main() -> None:
    """Export, import, compare."""
    pictures, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    listed = list_pictures(pictures)
    chosen = [listed[i] for i in np.random.default_rng(0).permutation(len(listed))[:PICTURES]]
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    failed = False
    for name in sys.argv[3:] or MODELS:
        model, one_each = spread(name, chosen), {"nms": False} if name.startswith("yolo26n") else {}
        told = {"imgsz": SIDE, "conf": 0.25, "iou": 0.45, "rect": False, "verbose": False, "retina_masks": True}
        theirs = [model.predict(cv2.imread(str(path)), **told | one_each)[0] for path in chosen]
        exported = [
            model.export(format="onnx", imgsz=SIDE, simplify=False, **one_each),
            model.export(format="openvino", imgsz=SIDE, **one_each),
        ]
        for file in exported:
            bundle = imported(file, pictures, folder / f"{Path(file).name}.edgeattn")
            for artefact in bundle.artefacts:
                failed |= compared(bundle, artefact.engine, chosen, theirs)
    sys.exit(failed)


def spread(name: str, files: list[Path]) -> Any:
    """The model, whose boxes and scores differ from place to place."""
    torch.manual_seed(0)
    model = ultralytics.YOLO(f"{name}.yaml")
    model.ckpt_path = f"{name}.pt"  # the exporter names its files after it
    x_N3HW = seen(model.model, files, SIDE)
    head = model.model.model[-1]
    boxes, classes = ([*getattr(head, f"cv{i}"), *(getattr(head, f"one2one_cv{i}", ()) or ())] for i in (2, 3))
    last = [
        (branch[-1], wanted, rare)
        for held, wanted, rare in ((boxes, 1.5, 0.0), (classes, 1.0, RARE))
        for branch in held
    ]
    given: dict[Any, torch.Tensor] = {}
    handles = [layer.register_forward_hook(lambda m, _, out: given.__setitem__(m, out)) for layer, _, _ in last]
    with torch.no_grad():
        model.model(x_N3HW)
        for layer, wanted, rare in last:
            out = given[layer] - layer.bias.view(1, -1, 1, 1)
            scale = wanted / (out - out.mean((0, 2, 3), keepdim=True)).std()
            layer.weight *= scale
            layer.bias[:] = -out.mean((0, 2, 3)) * scale - rare
    for handle in handles:
        handle.remove()
    return model


def compared(bundle: Any, name: str, files: list[Path], theirs: list[Any]) -> bool:
    """Print how far an engine's boxes and masks are from ultralytics'; whether that is too far."""
    engine = open_engine(bundle, engine=name, precision="float")
    least, fitting, boxes = 1.0, 0, 0
    times_ms: dict[int, float] = {}
    masks: list[float] = []
    for file, given in zip(files, theirs, strict=True):
        told_N6 = given.boxes.data.numpy()
        picture = read_picture(file)
        outputs = engine.infer(prepare(picture, bundle.spec.input))
        found = detect.decode(outputs, bundle.spec, picture.shape[:2])
        spent = []
        for _ in range(50):
            before = time.perf_counter_ns()
            detect.decode(outputs, bundle.spec, picture.shape[:2])
            spent.append((time.perf_counter_ns() - before) / 1e6)
        times_ms[len(found.boxes)] = statistics.median(spent)
        seen_N = (told_N6[:, 2:4] > told_N6[:, :2]).all(1)  # the rest: beyond the frame, clipped to nothing
        wanted_N6 = told_N6[seen_N]
        overlaps = detect.overlap(wanted_N6[:, :4], found.boxes) * (wanted_N6[:, 5:] == found.indices)
        edges = np.abs(wanted_N6[:, None, :4] - found.boxes).max(2, initial=0)
        near = (overlaps > OVERLAP) | ((overlaps > 0) & (edges < SLIVER))
        fits = np.concatenate([near.any(1), near.any(0)])
        fitting, boxes = fitting + int(fits.sum()), boxes + len(fits)
        if not fits.all():
            print(
                f"  {file.name}: {len(wanted_N6)} boxes, we find {len(found.boxes)}; {int((~fits).sum())} have no partner"
            )
        if given.masks is not None and found.masks is not None:
            own, others = found.masks.whole(), given.masks.data.numpy()[seen_N].astype(bool)
            for i in np.flatnonzero(near.any(1)):
                left, top, right, low = np.round(wanted_N6[i, :4]).astype(int)
                inner = np.s_[top + 1 : low - 1, left + 1 : right - 1]  # the edges of boxes are cut otherwise
                masks.append(iou(others[i][inner], own[near[i].argmax()][inner]))
        least = min([least, *overlaps.max(1, initial=0)[near.any(1)]])
    engine.close()
    print(
        f"{bundle.name}, {name}: {fitting} of {boxes} boxes, theirs and ours, have a partner, overlapping by {least:.4f} at least"
    )
    print(f"  decoding, ms by boxes told: {', '.join(f'{n}: {ms:.2f}' for n, ms in sorted(times_ms.items()))}")
    if masks:
        low = float(np.quantile(masks, 0.05))
        print(f"  {len(masks)} masks overlap theirs by {statistics.median(masks):.4f}, 95 % by {low:.4f} at least")
    return (
        fitting < boxes or bool(masks and np.median(masks) < SAME_MASK) or bool(bundle.spec.prototypes) != bool(masks)
    )


def iou(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Pixels of both over pixels of either; 1 for two that are empty."""
    either = (a | b).sum()
    return float((a & b).sum() / either) if either else 1.0


if __name__ == "__main__":
    main()
