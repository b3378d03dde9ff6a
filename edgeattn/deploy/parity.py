"""Whether an engine answers as torch does, and if not, which module's operators are the first that differ."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeattn.bundle import Bundle, write
from edgeattn.deploy.names import WRAPPER, attending
from edgeattn.engines import open_engine
from edgeattn.engines.base import infer_all
from edgeattn.spec import MapSpec, path_of
from edgeattn.tasks import parts

PARITY = 1e-4
"""Greatest difference between torch and an engine, as a fraction of the range of the answer (or of a map)."""

Array = NDArray[Any]


def parity(bundle: Bundle, name: str, inputs: Array, expected: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """The gate of an export: an engine's answers to inputs (N, H, W, 3) against torch's, by output."""
    worst, where = 0.0, ""
    got = parts(_answers(bundle, name, inputs), bundle.spec)
    for output, wanted in parts(expected, bundle.spec).items():
        difference = _difference(got[output], wanted)
        if not difference <= worst:  # not a number is the worst of all
            worst, where = difference, output
    verdict = "passed" if worst <= PARITY else "failed"
    return {"verdict": verdict, "difference": worst, "allowed": PARITY, "output": where, "n": len(inputs)}


def first_fault(model: nn.Module, graph: onnx.ModelProto, bundle: Bundle, name: str, image: Array) -> str | None:
    """The first module, in the order of the graph, whose output an engine gives otherwise than torch, with its operators.

    Args:
        model: what was exported, wrapper included.
        graph: what came of it, its nodes named by module.
        bundle: its spec, engine by engine; the file inside is not read.
        name: the engine.
        image: one input, (1, H, W, 3).

    Returns:
        As in `backbone.stem (Conv, Relu)`; None where no module's output differs by more than `PARITY`.
    """
    expected = _by_module(model, image)
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    last: dict[str, int] = {}  # the place of a module's last node: it makes its output
    for place, node in enumerate(graph.graph.node):
        at = path_of(node.name)
        while at not in ("", "-"):
            last[at] = place
            at = at.rpartition(".")[0]
    # Of modules that end in the same node the innermost says most.
    paths = sorted(last, key=lambda path: (last[path], -path.count(".")))
    places = {path: graph.graph.node[last[path]].output[0] for path in paths}
    probed = {p: places[p] for p in paths if p in expected and list(expected[p].shape) == shapes.get(places[p])}
    values = dict.fromkeys(value for value in probed.values() if value != bundle.spec.output)
    opened = onnx.ModelProto()
    opened.CopyFrom(graph)
    outputs = {output.name for output in opened.graph.output}
    opened.graph.output.extend(
        onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, shapes[value])
        for value in values
        if value not in outputs
    )
    maps = tuple(MapSpec(value, value, "") for value in values)
    spec = dataclasses.replace(bundle.spec, maps=maps)
    with tempfile.TemporaryDirectory() as scratch:
        trial = Bundle(Path(scratch) / "probed", spec, bundle.artefacts)
        got = _answers(write(trial, {"float.onnx": opened.SerializeToString()}), name, image)
    for path, value in probed.items():
        if not _difference(got[value], expected[path]) <= PARITY:
            inside = [n.op_type for n in graph.graph.node if f"{path_of(n.name)}.".startswith(f"{path}.")]
            return f"{path} ({', '.join(dict.fromkeys(inside))})"
    return None


def _by_module(model: nn.Module, image: Array) -> dict[str, NDArray[np.float32]]:
    """What torch's modules give for an image, by path."""
    found: dict[str, NDArray[np.float32]] = {}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and first.is_floating_point():
                found[path] = first.numpy().astype(np.float32)

        return hook

    with attending(model), torch.inference_mode():
        hooks = [m.register_forward_hook(keep(p.removeprefix(WRAPPER))) for p, m in model.named_modules() if p]
        try:
            model(torch.from_numpy(image))
        finally:
            for hook in hooks:
                hook.remove()
    return found


def _answers(bundle: Bundle, name: str, inputs: Array) -> dict[str, Array]:
    engine = open_engine(bundle, engine=name, precision="float", maps=True)
    try:
        return infer_all(engine, inputs)
    finally:
        engine.close()


def _difference(got: Array, wanted: Array) -> float:
    # A map that hardly varies (the attention of an untrained mixer) has no range to speak of: 1e-5 of its height is
    # what sums of hundreds in single precision leave, and no fault of the exporter.
    scale = max(float(np.ptp(wanted)), 0.1 * float(np.abs(wanted).max()), 1e-6)
    return float(np.abs(got - wanted).max()) / scale
