"""How `float.onnx` becomes `int8.onnx` (ONNX Runtime, QDQ) and `int8.xml` (OpenVINO, by NNCF): a recipe for each engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeattn.deploy.export import quiet, versions
from edgeattn.deploy.recipes.onnxruntime import quantize_onnxruntime
from edgeattn.deploy.recipes.openvino import quantize_openvino
from edgeattn.deploy.recipes.plan import DEFAULT_PLAN, Plan
from edgeattn.engines.base import Array
from edgeattn.errors import EdgeAttnError
from edgeattn.spec import Artefact

FILES = {"onnxruntime": ("int8.onnx",), "openvino": ("int8.xml", "int8.bin")}
"""Files of each engine's int8 artefact; the first is what it opens."""
TOOLS = {"onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "nncf")}
"""Packages that made them."""


def quantize_for(
    engine: str, source: Path, folder: Path, inputs: Sequence[Array], plan: Plan = DEFAULT_PLAN
) -> tuple[Artefact, dict[str, Path | bytes]]:
    """Quantize for one engine into a folder; return the artefact, without gates, and its files.

    Raises:
        EdgeAttnError: the toolchain failed.
    """
    try:
        with quiet("nncf", "root", ""):
            if engine == "onnxruntime":
                recipe = quantize_onnxruntime(source, folder / "int8.onnx", inputs, plan)
            else:
                recipe = quantize_openvino(source, folder / "int8.xml", inputs, plan)
    except Exception as error:
        raise EdgeAttnError(
            f"quantization for {engine} failed ({type(error).__name__}: {error}); the float model still works"
        ) from error
    names, tools = FILES[engine], TOOLS[engine]
    artefact = Artefact(names[0], engine, "int8", recipe=recipe, toolchain=versions(*tools))
    return artefact, {name: folder / name for name in names}
