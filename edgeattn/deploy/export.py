"""From a trained `nn.Module` to a bundle with `float.onnx`, checked against torch on real pictures through both engines."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeattn.bundle import GOLDEN, SUFFIX, Bundle, write
from edgeattn.deploy.lint import OPSET
from edgeattn.deploy.names import attending, name_nodes
from edgeattn.deploy.parity import PARITY, first_fault, parity
from edgeattn.deploy.rewrite import rewrite
from edgeattn.errors import DataError, EdgeAttnError, GateError
from edgeattn.imaging import Picture, prepare
from edgeattn.spec import Artefact, InputSpec, MapSpec, Rejection, Spec, Task

EXPORTERS = ("dynamo", "torchscript")
"""torch's exporters, in the order in which they are tried."""
GOLDEN_PICTURES = 50
ENGINES = ("onnxruntime", "openvino")


class Deployed(nn.Module):
    """A model as a box sees it: (B, H, W, 3) RGB bytes in, its answer (one tensor) and raw maps (B, h, w) out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        folded: Any = model.deployed() if hasattr(model, "deployed") else model  # type: ignore[operator]
        self.model: Any = folded.cpu().float().eval()
        self.eval()

    def forward(self, image_BHW3: Tensor) -> tuple[Tensor, ...]:
        """Normalise by the scalar pair (x - 128) / 128 and run."""
        x_B3HW = (image_BHW3.permute(0, 3, 1, 2).float() - 128.0) * (1.0 / 128.0)
        if not hasattr(self.model, "attend"):
            return (self.model(x_B3HW),)
        answer, maps = self.model.attend(x_B3HW)
        return (answer, *maps.values())

    def map_paths(self, imgsz: tuple[int, int]) -> list[str]:
        """Paths of the attention blocks, in the order of the outputs."""
        if not hasattr(self.model, "attend"):
            return []
        with torch.no_grad():
            return list(self.model.attend(torch.zeros(1, 3, *imgsz))[1])


def export(
    model: nn.Module,
    path: str | Path,
    *,
    labels: Sequence[str],
    pictures: Sequence[Picture],
    imgsz: int = 0,
    task: Task = "classify",
    input: InputSpec | None = None,
    mechanism: str = "",
    rejection: Rejection | None = None,
    provenance: Mapping[str, Any] | None = None,
    opset: int = OPSET,
) -> Bundle:
    """Export a model to a bundle at `path` and check it.

    Args:
        model: (B, 3, H, W), normalised by (x - 128) / 128, -> one tensor, as the task's file in `tasks` reads it; with
            `attend`, its maps become outputs; a detector's `thresholds` go into the bundle.
        path: the bundle's folder; its name gets the ending `.edgeattn` where it lacks one.
        labels: names of the classes, in the order of the answer's channels.
        imgsz: side of a square input that shows the middle of the frame, in pixels; in place of `input`.
        task: what the answer means.
        input: how a frame becomes the input; bytes.
        pictures: real pictures of any size, (H, W, 3) BGR bytes; parity is measured on them and they become the golden inputs.
        mechanism: name of the attention, for the maps.
        rejection: when the answer is `none of these`.
        provenance: what bundle.json says of data, weights, licence and recipe.
        opset: of ONNX; `OPSET` is the highest that all engines read, some toolchains read less.

    Raises:
        DataError: no pictures.
        EdgeAttnError: neither of torch's exporters takes the model; the message says why.
        GateError: an engine's answers differ from torch's by more than `PARITY`, whichever exporter made the file; the message
            names the first module that differs, with its operators. Nothing is written.
    """
    if not pictures:
        raise DataError("export needs real pictures to check parity on; give at least one")
    path = Path(path)
    path = path if path.name.endswith(SUFFIX) else path.with_name(path.name + SUFFIX)
    deployed = Deployed(model)
    spec = Spec(
        task, input or InputSpec(imgsz, imgsz), tuple(labels), "boxes" if task == "detect" else "logits",
        rejection=rejection, thresholds=getattr(deployed.model, "thresholds", None),
    )  # fmt: skip
    paths = deployed.map_paths((spec.input.height, spec.input.width))
    maps = tuple(MapSpec("map_" + path.replace(".", "_"), path, mechanism) for path in paths)
    spec = dataclasses.replace(spec, maps=maps)
    inputs = np.concatenate([prepare(picture, spec.input) for picture in pictures[:GOLDEN_PICTURES]])
    expected = _answers(deployed, spec, inputs)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, inputs=inputs, **{k: v.astype(np.float32) for k, v in expected.items()})  # type: ignore[arg-type]
    failures: list[EdgeAttnError] = []
    for exporter in EXPORTERS:
        recipe = {"opset": opset, "exporter": exporter}
        artefacts = tuple(
            Artefact("float.onnx", engine, "float", recipe=recipe, toolchain=versions("torch", "onnx", engine))
            for engine in ENGINES
        )
        try:
            graph = to_onnx(deployed, spec, opset=opset, exporter=exporter)
            files: dict[str, Path | bytes] = {"float.onnx": graph.SerializeToString(), GOLDEN: buffer.getvalue()}
            with tempfile.TemporaryDirectory() as scratch:  # measured on the saved file, before it is anybody's bundle
                trial = write(Bundle(Path(scratch) / "trial", spec, artefacts), files)
                gates = {engine: {"parity": parity(trial, engine, inputs, expected)} for engine in ENGINES}
                for engine, gate in gates.items():
                    if gate["parity"]["verdict"] != "passed":
                        at = first_fault(deployed, graph, trial, engine, inputs[:1])
                        raise GateError(_differs(engine, gate["parity"], at))
        except EdgeAttnError as error:
            failures.append(error)
            continue
        checked = tuple(dataclasses.replace(artefact, gates=gates[artefact.engine]) for artefact in artefacts)
        return write(Bundle(path, spec, checked, dict(provenance or {})), files)
    kind = GateError if any(isinstance(failure, GateError) for failure in failures) else EdgeAttnError
    told = "; ".join(f"exporter {name}: {failure}" for name, failure in zip(EXPORTERS, failures, strict=True))
    raise kind(f"{path}: nothing was written, no exporter gives the model as torch computes it. {told}")


def _differs(engine: str, worst: Mapping[str, Any], at: str | None) -> str:
    where = f"first in {at}" if at else "in no module's output, so at the end of the graph"
    return (
        f"{engine} answers otherwise than torch (output '{worst['output']}' differs by {worst['difference']:.1e} of its range, "
        f"allowed {PARITY:.0e}; {where})"
    )


def to_onnx(deployed: Deployed, spec: Spec, *, opset: int = OPSET, exporter: str = EXPORTERS[0]) -> onnx.ModelProto:
    """The ONNX graph of a deployed model, static shapes, batch of one, rewritten for the engines.

    Raises:
        EdgeAttnError: the model holds something that cannot be exported; the message names it.
    """
    example = torch.zeros(spec.input.shape, dtype=torch.uint8)
    names = [spec.output, *(m.output for m in spec.maps)]
    written: Any = io.BytesIO()  # the older exporter takes a stream, though its annotation says otherwise
    try:
        with quiet("torch.onnx"), attending(deployed):
            program = torch.onnx.export(
                deployed, (example,), None if exporter == "dynamo" else written, dynamo=exporter == "dynamo",
                opset_version=opset, verbose=False, input_names=[spec.input.name], output_names=names,
            )  # fmt: skip
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise EdgeAttnError(
            f"the model cannot be exported to ONNX: {reason[-1] if reason else type(error).__name__}"
        ) from error
    graph: onnx.ModelProto = program.model_proto if program else onnx.load_from_string(written.getvalue())
    rewrite(graph)
    name_nodes(graph.graph, [path for path, _ in deployed.named_modules()])
    for entry in (
        *graph.graph.node,
        *graph.graph.initializer,
    ):  # stack traces of the maker's machine do not belong in a product
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")
    onnx.checker.check_model(graph, full_check=True)
    return graph


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the packages named."""
    return {package: importlib.metadata.version(package) for package in packages}


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """Short digest of a recipe's JSON."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def _answers(deployed: Deployed, spec: Spec, inputs: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
    with torch.inference_mode():
        outputs = deployed(torch.from_numpy(inputs))
    return {
        name: value.numpy() for name, value in zip([spec.output, *(m.output for m in spec.maps)], outputs, strict=True)
    }


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence the warnings, the bars and the loggers' notes of a toolchain; errors still surface."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            for name in loggers:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
