"""`edgeattn compile`: a bundle for an NPU, by its own compiler and simulator, or as its compiler wants it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeattn.cli.common import load_own, need_training, say, write_json
from edgeattn.errors import EdgeAttnError, NameNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeattn.bundle import Bundle
    from edgeattn.engines.base import Array
    from edgeattn.spec import Artefact

SCHEMA = "edgeattn.compile/1"
TOOLCHAINS = {"qualcomm": "onnxruntime-qnn", "intel": "openvino"}
"""The package that compiles for each target."""


def compile_(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder.")],
    *,
    target: Annotated[str, typer.Option(help="qualcomm or intel.")] = "qualcomm",
    chip: Annotated[str, typer.Option(help="Of qualcomm: sm8450, sm8550, sm8650, sm8750 or x-elite.")] = "sm8550",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Manifest of a calibration set; default (qualcomm): half of the bundle's golden inputs."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write the report there, also where nothing could be compiled.")
    ] = None,
) -> None:
    """Compile a bundle for an NPU and check the compiled model's answers in the toolchain's simulator.

    qualcomm: it joins the bundle only if the whole graph is one node and answers and maps differ from float's by less than 3 %.
    intel: a file that the device compiles when it is first opened there, and is used once its answers are the CPU's.
    """
    from edgeattn.deploy.calibration import read
    from edgeattn.imaging import prepare
    from edgeattn.spec import to_json

    if target not in TOOLCHAINS:
        raise NameNotFoundError("target", target, TOOLCHAINS)
    loaded = load_own(bundle)
    loaded.spec.must_classify("compile")
    inputs = [prepare(picture, loaded.spec.input) for picture in read(calibration).pictures()] if calibration else []
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "bundle": str(loaded.path),
        "target": target,
        "toolchain": TOOLCHAINS[target],
        "version": _installed(TOOLCHAINS[target]),
        "compiled": False,
        "nodes_on_cpu": None,
        "relative_error": None,
        "artefact": None,
    }
    try:
        made, found = _intel(loaded, inputs) if target == "intel" else _qualcomm(loaded, inputs, chip)
    except EdgeAttnError as error:
        write_json(json, report | {"log": getattr(error, "log", str(error))})
        raise
    write_json(json, report | found | {"artefact": to_json(made)})
    if made.verdict != "passed":
        say(f"{loaded.path} is as it was; its other files work")
        raise typer.Exit(1)
    if target == "intel":
        say(f"next, on the box:  edgeattn run {loaded.path} --device NPU")


def _installed(package: str) -> str | None:
    """Its version; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _qualcomm(bundle: Bundle, inputs: Sequence[Array], chip: str) -> tuple[Artefact, dict[str, Any]]:
    """Compile for Qualcomm's HTP and execute it in the simulator; give the artefact and what the report says of it."""
    from edgeattn.deploy.npu.qualcomm import compile_qualcomm

    made = compile_qualcomm(bundle, inputs, chip=chip)
    gate = made.artefact.gates["simulated"]
    nodes = (
        "one node" if gate["nodes"] == ["EPContext"] else f"{len(gate['nodes'])} nodes: {', '.join(gate['nodes'][:5])}"
    )
    weights = made.artefact.recipe["weights"]
    say(f"compiled for {chip} in {gate['compile_s']:.1f} s: {nodes}; activations in 16 bits, weights {weights}")
    say(
        f"answers differ from float's by {100 * gate['value']:.1f} % on {gate['n']} golden inputs, maps by "
        f"{100 * gate['maps']:.1f} % at most (allowed {100 * gate['bound']:.0f} %): {gate['verdict']}; {gate['where']}"
    )
    beside = sum(kind != "EPContext" for kind in gate["nodes"])
    return made.artefact, {"compiled": True, "nodes_on_cpu": beside, "relative_error": gate["value"], "log": made.log}


def _intel(bundle: Bundle, inputs: Sequence[Array]) -> tuple[Artefact, dict[str, Any]]:
    """Quantize for Intel's NPU; give the artefact and what the report says of it."""
    need_training("edgeattn compile --target intel")
    from edgeattn.deploy.npu.intel import prepare_intel

    artefact = prepare_intel(bundle, inputs).artefact
    gate = artefact.gates["golden"]
    share = 100 * gate["golden_agreement"]
    say(
        f"{artefact.file}: int8, activations per tensor; it gives the maker's answer on {share:.0f} % "
        f"of {gate['n']} golden inputs (at least {100 * gate['bound']:.0f} %): {gate['verdict']}; {gate['where']}"
    )
    log = "quantized; OpenVINO compiles it on the device, when it is first opened there"
    return artefact, {"relative_error": gate["relative_error"], "log": log}
