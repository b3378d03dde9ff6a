"""A real detector and a segmenter for tests, without torch and without training: squares of three colours, anywhere on grey.

Its weights are written by hand. On 16 x 16 pixels a convolution measures how far each colour covers them; from there one
convolution sums the cover to the left, above, to the right and below, which is the way to a square's edges (the box branch),
another one gives the classes (the class branch). 640 x 640 in, as ultralytics exports; (1, 4 + 3, 1600) out.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeattn._cv2 import cv2
from edgeattn.bundle import GOLDEN, Bundle, write
from edgeattn.imaging import Picture, prepare
from edgeattn.spec import Artefact, InputSpec, Spec

LABELS = ("red", "green", "blue")
SIDE, STRIDE = 640, 16
CELLS = SIDE // STRIDE
REGIONS = Spec("segment", InputSpec(SIDE, SIDE, fit="letterbox"), ("background", *LABELS))
SPEC = Spec("detect", InputSpec(SIDE, SIDE, fit="letterbox"), LABELS, output="boxes")
REACH = 5
"""Cells on each side that a box is summed over: half of the largest square."""


@dataclass(frozen=True)
class Squares:
    """The squares of a picture."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    shape: tuple[int, int] = (480, 640)

    def class_map(self) -> NDArray[np.uint8]:
        """The class of every pixel, 0 the background."""
        classes = np.zeros(self.shape, np.uint8)
        for label, (left, top, right, low) in zip(self.labels, self.boxes.astype(int).tolist(), strict=True):
            classes[top:low, left:right] = label + 1
        return classes


def pictures(n: int, seed: int = 0, height: int = 480, width: int = 640) -> list[tuple[Picture, Squares]]:
    """`n` grey pictures with one to four squares of 64 to 140 pixels that do not touch, each with its truth."""
    rng = np.random.default_rng(seed)
    return [_picture(rng, height, width) for _ in range(n)]


def _picture(rng: np.random.Generator, height: int, width: int) -> tuple[Picture, Squares]:
    ramp = np.linspace(*rng.uniform(60, 190, 2), width)
    picture = np.repeat(np.tile(ramp, (height, 1))[..., None], 3, axis=2).astype(np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    labels = []
    for _ in range(int(rng.integers(1, 5))):
        for _ in range(50):
            side = int(rng.integers(64, 141))
            x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
            if all(x > r + 40 or x + side < n - 40 or y > s + 40 or y + side < m - 40 for n, m, r, s in boxes):
                break
        else:
            continue
        label = int(rng.integers(3))
        picture[y : y + side, x : x + side] = 30
        picture[y : y + side, x : x + side, 2 - label] = rng.integers(150, 256)
        boxes.append((x, y, x + side, y + side))
        labels.append(label)
    found = np.array(boxes, np.float32).reshape(-1, 4)
    return picture, Squares(found, np.array(labels, np.int64), np.zeros(len(labels), bool), (height, width))


def folder(root: Path, n: int, seed: int = 0) -> Path:
    """The same as YOLO's folder."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(LABELS) + "\n")
    for i, (picture, truth) in enumerate(pictures(n, seed)):
        height, width = picture.shape[:2]
        cv2.imwrite(str(root / "images" / f"{i:03d}.png"), picture)
        lines = []
        for label, (left, top, right, low) in zip(truth.labels, truth.boxes.tolist(), strict=True):
            middle = ((left + right) / 2 / width, (top + low) / 2 / height)
            lines.append(f"{label} {middle[0]} {middle[1]} {(right - left) / width} {(low - top) / height}")
        (root / "labels" / f"{i:03d}.txt").write_text("\n".join(lines) + "\n")
    return root


def masks(root: Path, n: int, seed: int = 0) -> Path:
    """The same as a folder of masks."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(REGIONS.labels) + "\n")
    for i, (picture, truth) in enumerate(pictures(n, seed)):
        cv2.imwrite(str(root / "images" / f"{i:03d}.png"), picture)
        cv2.imwrite(str(root / "masks" / f"{i:03d}.png"), truth.class_map())
    return root


@functools.cache
def float_model(*, loud: bool = False, regions: bool = False) -> bytes:
    """The detector as ONNX, its nodes named by where they are, as our exporter names them.

    With `loud` the box branch has a fifth channel, a thousand times as strong, that nobody reads: one scale for all of its
    channels leaves the edges nothing. With `regions` it is the segmenter.
    """
    nodes, weights = [], {}

    def node(path: str, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], f"{path}/{kind}_{len(nodes)}", **attributes))
        return output

    def weight(name: str, value: Any, dtype: Any = np.float32) -> str:
        weights[name] = np.asarray(value, dtype)
        return name

    x = node("-", "Cast", ["image"], "cast", to=TensorProto.FLOAT)
    x = node("-", "Sub", [x, weight("mean", 128.0)], "centred")
    x = node("-", "Mul", [x, weight("scale", 1 / 128)], "normalised")
    x = node("-", "Transpose", [x], "nchw", perm=[0, 3, 1, 2])
    kernel = np.full((3, 3, STRIDE, STRIDE), -0.5 / STRIDE**2)
    for colour in range(3):
        kernel[colour, colour] = 1 / STRIDE**2
    x = node(
        "stem", "Conv", [x, weight("stem.w", kernel), weight("stem.b", np.zeros(3))], "colours", strides=[STRIDE] * 2
    )
    x = node("stem", "Clip", [x, weight("none", 0.0), weight("whole", 1.0)], "cover")
    if regions:
        mixed = np.concatenate([np.zeros((1, 3)), np.eye(3)]).reshape(4, 3, 1, 1)
        own = [x, weight("mixed.w", mixed), weight("mixed.b", [0.5, 0.0, 0.0, 0.0])]
        node("head", "Conv", own, "logits")
        return _written(nodes, weights, REGIONS, [1, 4, CELLS, CELLS])
    reach = np.zeros((4, 3, 2 * REACH + 1, 2 * REACH + 1))
    reach[0, :, REACH, :REACH], reach[1, :, :REACH, REACH] = 1.0, 1.0
    reach[2, :, REACH, REACH + 1 :], reach[3, :, REACH + 1 :, REACH] = 1.0, 1.0
    reach[:, :, REACH, REACH] = 0.5
    reach = np.concatenate([reach, 1000 * reach[:1]]) if loud else reach
    own = [x, weight("boxes.w", reach), weight("boxes.b", np.zeros(len(reach)))]
    edges = node("head.boxes", "Conv", own, "edges", pads=[REACH] * 4)
    if loud:
        bounds = [weight(name, [value], np.int64) for name, value in (("first", 0), ("fifth", 4), ("axis", 1))]
        edges = node("head", "Slice", [edges, *bounds], "quiet")
    classes = np.zeros((3, 3, 3, 3))
    for k in range(3):
        classes[k, k] = 30 / 9
    own = [x, weight("classes.w", classes), weight("classes.b", np.full(3, -24.0))]
    logits = node("head.classes", "Conv", own, "logits", pads=[1] * 4)
    edges = node("head", "Reshape", [edges, weight("four", [1, 4, -1], np.int64)], "flat_edges")
    logits = node("head", "Reshape", [logits, weight("three", [1, 3, -1], np.int64)], "flat_logits")
    places = (np.stack(np.meshgrid(np.arange(CELLS), np.arange(CELLS)), 0) + 0.5).reshape(1, 2, -1)
    nodes.append(helper.make_node("Split", [edges], ["before", "after"], "head/Split", axis=1, num_outputs=2))
    start = node("head", "Sub", [weight("places", places), "before"], "start")
    end = node("head", "Add", ["places", "after"], "end")
    total = node("head", "Add", [start, end], "total")
    middle = node("head", "Mul", [total, weight("half", 0.5)], "middle")
    size = node("head", "Sub", [end, start], "size")
    boxes = node("head", "Concat", [middle, size], "in_cells", axis=1)
    boxes = node("head", "Mul", [boxes, weight("stride", float(STRIDE))], "in_pixels")
    node("head", "Concat", [boxes, node("head", "Sigmoid", [logits], "scores")], "boxes", axis=1)
    return _written(nodes, weights, SPEC, [1, 7, CELLS**2])


def _written(nodes: list[onnx.NodeProto], weights: dict[str, Any], spec: Spec, shape: list[int]) -> bytes:
    graph = helper.make_graph(
        nodes, "squares",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(spec.output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def bundle(path: Path, files: dict[str, bytes] | None = None, *, loud: bool = False, regions: bool = False) -> Bundle:
    """Write the float bundle with artefacts for both engines; `files` of int8, by name, are put in for ONNX Runtime."""
    import onnxruntime

    model, spec = float_model(loud=loud, regions=regions), REGIONS if regions else SPEC
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = np.concatenate([prepare(picture, SPEC.input) for picture, _ in pictures(10, seed=9)])
    golden = io.BytesIO()
    answers = np.concatenate([session.run(None, {"image": inputs[i : i + 1]})[0] for i in range(len(inputs))])
    np.savez_compressed(golden, inputs=inputs, **{spec.output: answers})  # type: ignore[arg-type]
    parity = {"parity": {"verdict": "passed", "n": 10}}
    artefacts = [Artefact("float.onnx", engine, "float", gates=parity) for engine in ("onnxruntime", "openvino")]
    artefacts += [Artefact(name, "onnxruntime", "int8") for name in files or {}]
    held: dict[str, Path | bytes] = {"float.onnx": model, GOLDEN: golden.getvalue(), **(files or {})}
    return write(Bundle(path, spec, tuple(artefacts)), held)
