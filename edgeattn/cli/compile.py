"""`edgeattn compile`: a bundle for an NPU, by its own compiler and simulator, or as its compiler wants it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeattn.cli.common import load_own, need_training, say, write_json
from edgeattn.errors import NameNotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgeattn.bundle import Bundle
    from edgeattn.deploy.recipes import Input

SCHEMA = "edgeattn.compile/1"
TARGETS = ("qualcomm", "intel")


def compile_(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder.")],
    *,
    target: Annotated[str, typer.Option(help="qualcomm or intel.")] = "qualcomm",
    chip: Annotated[str, typer.Option(help="Of qualcomm: sm8450, sm8550, sm8650, sm8750 or x-elite.")] = "sm8550",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Manifest of a calibration set; default (qualcomm): half of the bundle's golden inputs."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report there.")] = None,
) -> None:
    """Compile a bundle for an NPU and check the compiled model's answers in the toolchain's simulator.

    qualcomm: it joins the bundle only if the whole graph is one node and answers and maps differ from float's by less than 3 %.
    intel: a file that the device compiles when it is first opened there, and is used once its answers are the CPU's.
    """
    from edgeattn.deploy.calibration import read
    from edgeattn.deploy.npu.qualcomm import compile_qualcomm
    from edgeattn.imaging import prepare
    from edgeattn.spec import to_json

    if target not in TARGETS:
        raise NameNotFoundError("target", target, TARGETS)
    loaded = load_own(bundle)
    loaded.spec.must_classify("compile")
    inputs = [prepare(picture, loaded.spec.input) for picture in read(calibration).pictures()] if calibration else []
    if target == "intel":
        _intel(loaded, inputs, json)
        return
    made = compile_qualcomm(loaded, inputs, chip=chip)
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
    write_json(
        json, {"schema": SCHEMA, "bundle": str(loaded.path), "artefact": to_json(made.artefact), "log": made.log}
    )
    _end(loaded, gate)


def _intel(bundle: Bundle, inputs: Sequence[Input], json: Path | None) -> None:
    """Quantize for Intel's NPU, which compiles when it first opens the file."""
    need_training("edgeattn compile --target intel")
    from edgeattn.deploy.npu.intel import prepare_intel
    from edgeattn.spec import to_json

    made = prepare_intel(bundle, inputs)
    gate = made.artefact.gates["golden"]
    share = 100 * gate["golden_agreement"]
    say(
        f"{made.artefact.file}: int8, activations per tensor; it gives the maker's answer on {share:.0f} % "
        f"of {gate['n']} golden inputs (at least {100 * gate['bound']:.0f} %): {gate['verdict']}; {gate['where']}"
    )
    write_json(json, {"schema": SCHEMA, "bundle": str(bundle.path), "artefact": to_json(made.artefact), "log": ""})
    _end(bundle, gate)
    say(f"next, on the box:  edgeattn run {bundle.path} --device NPU")


def _end(bundle: Bundle, gate: Mapping[str, Any]) -> None:
    """Exit with 1 where the gate was not passed."""
    if gate["verdict"] != "passed":
        say(f"{bundle.path} is as it was; its other files work")
        raise typer.Exit(1)
