"""A model from elsewhere, ONNX or OpenVINO IR: what it says of itself, what it takes and gives.

What differs between the two forms is in `onnx` and `openvino`, behind `graph.Graph`.
"""

from __future__ import annotations

import ast
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeattn.datasets.labelled import distinct
from edgeattn.deploy.foreign.graph import Graph, Port
from edgeattn.errors import DataError
from edgeattn.spec import InputSpec, Task

__all__ = [
    "Graph",
    "Metadata",
    "Normalisation",
    "Port",
    "input_of",
    "metadata",
    "model_file",
    "output_of",
    "read_graph",
]

Triple = tuple[float, float, float]
Normalisation = tuple[Triple, Triple]
"""RGB mean and divisor on the 0-255 scale."""
ZERO_TO_ONE: Normalisation = ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
IMPORTED = "classifiers, detectors of ultralytics' form (with masks, too), and by --task segment what gives logits (1, K, h, w)"
ULTRALYTICS = ("classify", "detect")
"""Its tasks that are ours too; what it calls to segment is a detector that gives masks (see `tasks.instances`)."""
CLASSIFIERS = ("", "classification", "yolo")
"""Model API's types that may be classifiers: ultralytics writes YOLO for all of its tasks."""


@dataclass(frozen=True)
class Metadata:
    """What a file says of itself; empty where it is silent."""

    labels: tuple[str, ...] = ()
    """Names of the classes."""
    normalisation: Normalisation | None = None
    """How pictures are normalised."""
    channels: str = ""
    """Their order."""
    imgsz: tuple[int, int] | None = None
    """Height and width of its input, in pixels."""
    task: Task | None = None
    """What it does."""


def model_file(path: Path) -> Path:
    """The file that is meant: itself, or the one IR in a folder, as ultralytics writes it.

    Raises:
        DataError: there is none, or there are several; or an IR lacks its weights.
    """
    if path.is_dir():
        held = sorted(path.glob("*.xml"))
        if len(held) != 1:
            names = f"{len(held)} of them: {', '.join(file.name for file in held)}" if held else "none"
            raise DataError(f"{path} should hold one model.xml and holds {names}; name the model's file")
        path = held[0]
    if not path.is_file():
        raise DataError(f"there is no {path}; name an .onnx file, an OpenVINO .xml, or the folder that holds it")
    if path.suffix == ".xml" and not path.with_suffix(".bin").is_file():
        raise DataError(f"{path} lacks its weights; copy {path.with_suffix('.bin').name} beside it")
    return path


def read_graph(file: Path) -> Graph:
    """Read a model's file.

    Raises:
        DataError: it cannot be read, or is quantized already.
    """
    graph: Graph
    if file.suffix == ".xml":
        from edgeattn.deploy.foreign.openvino import IrGraph

        graph = IrGraph(file)
    else:
        from edgeattn.deploy.foreign.onnx import OnnxGraph

        graph = OnnxGraph(file)
    if graph.integers:
        kinds = ", ".join(sorted(set(graph.integers))[:3])
        raise DataError(
            f"{file} is quantized already ({len(graph.integers)} times {kinds}); import the float model that it was "
            "made of, and `edgeattn quantize` measures what int8 costs"
        )
    return graph


def metadata(told: Mapping[str, str]) -> Metadata:
    """Read what ultralytics and OpenVINO Model API write.

    Raises:
        DataError: it is a model for another task.
    """
    if {"task", "names", "imgsz"} <= told.keys():
        task = told["task"]
        task = "detect" if task == "segment" else task  # whose masks belong to boxes
        if task not in ULTRALYTICS:
            raise DataError(f"this is a model of ultralytics to {task}; this version imports {IMPORTED}")
        names = ast.literal_eval(told["names"])
        height, width = ast.literal_eval(told["imgsz"])
        labels = distinct([names[i] for i in sorted(names)])
        return Metadata(labels, ZERO_TO_ONE, "rgb", (height, width), typing.cast("Task", task))
    api = {key.removeprefix("model_info "): value for key, value in told.items() if key.startswith("model_info ")}
    if api.get("model_type", "").lower() not in CLASSIFIERS:
        raise DataError(f"this is a model for {api['model_type']}; this version imports {IMPORTED}")
    # Model API reads BGR pictures and reverses them before it normalises: its means are in the model's order.
    order = {"true": "rgb", "yes": "rgb", "false": "bgr", "no": "bgr"}
    channels = order.get(api.get("reverse_input_channels", "").lower(), "")
    mean, std = _triple(api.get("mean_values", "")), _triple(api.get("scale_values", ""))
    normalisation = None
    if mean or std:
        normalisation = (mean or (0.0, 0.0, 0.0), std or (1.0, 1.0, 1.0))
        if channels == "bgr":
            normalisation = (_reversed(normalisation[0]), _reversed(normalisation[1]))
    return Metadata(distinct(api.get("labels", "").split()), normalisation, channels)


def _reversed(triple: Triple) -> Triple:
    first, second, third = triple
    return third, second, first


def _triple(text: str) -> Triple | None:
    """Three numbers, or one for all; None where there are none."""
    values = [float(value) for value in text.replace(",", " ").split()]
    if len(values) not in (0, 1, 3):
        raise DataError(
            f"its metadata give {len(values)} numbers ({text}) for three channels; tell it with --normalise"
        )
    r, g, b = values * 3 if len(values) == 1 else values or (0.0, 0.0, 0.0)
    return (r, g, b) if values else None


def input_of(graph: Graph, file: Path, imgsz: tuple[int, int] | None) -> tuple[InputSpec, bool]:
    """The input with the sizes that are left open filled in by `imgsz`, and whether its channels come last.

    Raises:
        DataError: it takes something else than a picture.
    """
    shapes = ", ".join(map(str, graph.inputs))
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape) != 4:
        raise DataError(f"{file} takes {shapes}; a model of pictures takes one input of four dimensions")
    (given,) = graph.inputs
    if given.kind != "float32":
        raise DataError(f"{file} takes numbers of type {given.kind}; export it with float32 inputs")
    batch, *rest = given.shape
    nhwc = rest[2] == 3 and rest[0] != 3
    if not nhwc and rest[0] not in (0, 3):
        raise DataError(f"{file} takes {shapes}; pictures have three channels")
    if batch > 1:
        raise DataError(f"{file} takes {batch} pictures at once; export it for a batch of one, or a dynamic one")
    height, width = rest[:2] if nhwc else rest[1:]
    if not (height and width) and imgsz is None:
        raise DataError(f"{file} leaves the size of its pictures open ({shapes}); choose it with --imgsz")
    asked_height, asked_width = imgsz or (0, 0)
    return InputSpec(height or asked_height, width or asked_width, "nchw_f32", name=given.name), nhwc


def prototypes_of(graph: Graph) -> str:
    """Name of a detector's output that holds prototypes of masks; empty where there is none."""
    fours = [port.name for port in graph.outputs if len(port.shape) == 4]
    return fours[0] if len(fours) == 1 and len(graph.outputs) == 2 else ""


def output_of(graph: Graph, file: Path, classes: int, task: Task = "classify") -> str:
    """Name of the output that holds the logits, of a picture or of its places, or a detector's boxes.

    Raises:
        DataError: none, or more than one, has a number for each class, or one of the forms that `tasks.detect` and
            `tasks.segment` tell.
    """
    if task == "detect":
        threes = [port for port in graph.outputs if len(port.shape) == 3]
        more = sum(port.shape[1] for port in graph.outputs if port.name == prototypes_of(graph))
        found = [port for port in threes if port.shape[2] == 6 + more or port.shape[1] == 4 + classes + more]
    elif task == "segment":
        found = [port for port in graph.outputs if len(port.shape) == 4 and port.shape[1] == classes]
    else:
        found = [port for port in graph.outputs if math.prod(port.shape[1:] or (0,)) == classes]
    if not found and len(graph.outputs) == 1 and 0 in (graph.outputs[0].shape[1:] or (0,)):
        found = [graph.outputs[0]]  # checked when it is run
    if len(found) != 1:
        held = ", ".join(map(str, graph.outputs))
        raise DataError(f"{file} gives {held}: {'none' if not found else 'more than one'} fits {classes} labels")
    return found[0].name
