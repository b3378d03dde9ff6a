"""`edgeattn export`: a finished run to a bundle with `float.onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeattn.bundle import Bundle, load
from edgeattn.cli.common import console, need_training, say, write_json


def export(
    run: Annotated[
        str, typer.Argument(help="Folder of a finished run; with --peer also a bundle, or its name in the zoo.")
    ],
    *,
    out: Annotated[Path | None, typer.Option(help="The bundle; default: RUN.edgeattn beside the run.")] = None,
    peer: Annotated[
        Path | None,
        typer.Option(
            help="Write PEER.onnx and PEER.xml for others: float, no maps, metadata of ultralytics and Model API."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report there.")] = None,
) -> None:
    """Export a run to ONNX for both engines and check it against torch on real pictures."""
    if peer and not (Path(run) / "recipe.json").is_file():
        _for_others(load(run), peer)
        return
    need_training("edgeattn export")
    from edgeattn.deploy.lint import lint
    from edgeattn.spec import to_json
    from edgeattn.train.runs import load_run
    from edgeattn.train.sources import open_data
    from edgeattn.workflow import export_run

    folder = Path(run)
    trained = load_run(folder)
    bundle = export_run(trained, open_data(trained.recipe, folder), out or folder.with_name(folder.name + ".edgeattn"))
    for artefact in bundle.artefacts:
        gate = artefact.gates["parity"]
        differs = f"differs from torch by {gate['difference']:.1e} of the range"
        say(f"{artefact.engine}: {differs} on {gate['n']} pictures, {gate['verdict']}")
    if broken := [finding for finding in lint(bundle) if not finding.is_advice]:
        say(f"lint: {len(broken)} rules of NPU compilers broken; edgeattn lint {bundle.path}")
    if peer:
        _for_others(bundle, peer)
    write_json(
        json, {"schema": "edgeattn.export/1", "bundle": str(bundle.path), "artefacts": to_json(bundle.artefacts)}
    )
    console.print(f"next:  edgeattn quantize {bundle.path} --run {run}", markup=False)


def _for_others(bundle: Bundle, peer: Path) -> None:
    from edgeattn.deploy.peer import export_peer

    for file in export_peer(bundle, peer):
        say(f"for others: {file}")
