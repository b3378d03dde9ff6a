"""`edgeattn compile`: a bundle for an NPU, by its own compiler, executed in its simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeattn.cli.common import say, write_json
from edgeattn.errors import NameNotFoundError

SCHEMA = "edgeattn.compile/1"
TARGETS = ("qualcomm",)


def compile_(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder.")],
    *,
    target: Annotated[str, typer.Option(help="qualcomm.")] = "qualcomm",
    chip: Annotated[str, typer.Option(help="sm8450, sm8550, sm8650, sm8750 or x-elite.")] = "sm8550",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Manifest of a calibration set; default: half of the bundle's golden inputs."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report there.")] = None,
) -> None:
    """Compile a bundle for an NPU and check the compiled model's answers in the toolchain's simulator.

    It joins the bundle only if the whole graph is one node and the answers differ from float's by less than 3 %.
    """
    from edgeattn.bundle import load
    from edgeattn.deploy.calibration import read
    from edgeattn.deploy.npu.qualcomm import compile_qualcomm
    from edgeattn.imaging import prepare
    from edgeattn.spec import to_json

    if target not in TARGETS:
        raise NameNotFoundError("target", target, TARGETS)
    loaded = load(bundle)
    inputs = [prepare(picture, loaded.spec.input) for picture in read(calibration).pictures()] if calibration else []
    made = compile_qualcomm(loaded, inputs, chip=chip)
    gate = made.artefact.gates["simulated"]
    nodes = (
        "one node" if gate["nodes"] == ["EPContext"] else f"{len(gate['nodes'])} nodes: {', '.join(gate['nodes'][:5])}"
    )
    weights = made.artefact.recipe["weights"]
    say(f"compiled for {chip} in {gate['compile_s']:.1f} s: {nodes}; activations in 16 bits, weights {weights}")
    say(
        f"answers differ from float's by {100 * gate['value']:.1f} % on {gate['n']} golden inputs (allowed "
        f"{100 * gate['bound']:.0f} %), maps by {100 * gate['maps']:.1f} % at most: {gate['verdict']}; {gate['where']}"
    )
    write_json(
        json, {"schema": SCHEMA, "bundle": str(loaded.path), "artefact": to_json(made.artefact), "log": made.log}
    )
    if gate["verdict"] != "passed":
        say(f"{loaded.path} is as it was; its other files work")
        raise typer.Exit(1)
