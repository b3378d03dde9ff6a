"""A tiny real detector for tests, without torch: which of 4x4 cells are red, green or blue?

`model` is the ONNX graph in either of the forms that `tasks.detect` reads, with ultralytics' metadata; `frame` paints cells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LABELS = ("red", "green", "blue")
SIDE, CELL = 32, 8
CELLS = (SIDE // CELL) ** 2
TOLD = {"task": "detect", "names": "{0: 'red', 1: 'green', 2: 'blue'}", "imgsz": "[32, 32]", "stride": "8"}


def model(file: Path, *, one_each: bool = False, masks: bool = False) -> Path:
    """Write the detector: (1, 7, 16), or with `one_each` (1, 16, 6); pictures come as 0 to 1.

    With `masks` a number more for each box, and a prototype (1, 1, 16, 16) that is above 0 where the picture is not grey.
    """
    places = np.stack(np.meshgrid(np.arange(4), np.arange(4)), 0).reshape(1, 2, CELLS) * CELL
    ends = [places, places + CELL] if one_each else [places + CELL / 2, np.full_like(places, CELL)]
    weights: dict[str, Any] = {
        "opponents": (1.5 * np.eye(3) - 0.5).reshape(3, 3, 1, 1).astype(np.float32),
        "places": np.concatenate(ends, 1).astype(np.float32),
        "flat": np.array([1, 3, CELLS]),
        "least": np.float32(0),
        "most": np.float32(1),
        "classes": np.array([1]),
    }
    nodes = [
        helper.make_node("AveragePool", ["images"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Conv", ["cells", "opponents"], ["colours"]),
        helper.make_node("Clip", ["colours", "least", "most"], ["bounded"]),
        helper.make_node("Reshape", ["bounded", "flat"], ["scores"]),
    ]
    if one_each:
        nodes += [
            helper.make_node("ReduceMax", ["scores", "classes"], ["best"], keepdims=1),
            helper.make_node("ArgMax", ["scores"], ["class"], axis=1, keepdims=1),
            helper.make_node("Cast", ["class"], ["index"], to=TensorProto.FLOAT),
            helper.make_node("Concat", ["places", "best", "index"], ["rows"], axis=1),
            helper.make_node("Transpose", ["rows"], ["output0"], perm=[0, 2, 1]),
        ]
    else:
        nodes.append(helper.make_node("Concat", ["places", "scores"], ["output0"], axis=1))
    shape = [1, CELLS, 6] if one_each else [1, 7, CELLS]
    outputs = [helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape)]
    if masks:
        axis = 2 if one_each else 1
        nodes[-1].output[:] = ["plain"]
        weights |= {
            "weights": np.ones([1, CELLS, 1] if one_each else [1, 1, CELLS], np.float32),
            "channels": np.array([1]),
            "bound": np.float32(0.5),
        }
        nodes += [
            helper.make_node("Concat", ["plain", "weights"], ["output0"], axis=axis),
            helper.make_node("AveragePool", ["images"], ["small"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("ReduceMax", ["small", "channels"], ["brightest"], keepdims=1),
            helper.make_node("Sub", ["brightest", "bound"], ["output1"]),
        ]
        shape[axis] += 1
        outputs = [helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape)]
        outputs.append(helper.make_tensor_value_info("output1", TensorProto.FLOAT, [1, 1, SIDE // 2, SIDE // 2]))
    graph = helper.make_graph(
        nodes,
        "tiny_detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, TOLD | ({"task": "segment"} if masks else {}))
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, file)
    return file


def frame(cells: dict[tuple[int, int], str], height: int = 64, width: int = 128) -> NDArray[np.uint8]:
    """Grey, (height, width, 3) BGR, with cells by row and column of the letterboxed input painted in the colours named."""
    scale, grey = max(height, width) / SIDE, np.full((height, width, 3), 90, np.uint8)
    bars_y, bars_x = (max(height, width) - height) // 2, (max(height, width) - width) // 2
    for (row, column), colour in cells.items():
        top, left = round(row * CELL * scale) - bars_y, round(column * CELL * scale) - bars_x
        painted = [255 * (name == colour) for name in reversed(LABELS)]
        grey[max(0, top) : top + round(CELL * scale), max(0, left) : left + round(CELL * scale)] = painted
    return grey
