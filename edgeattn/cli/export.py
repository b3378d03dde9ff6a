"""`edgeattn export`: a finished run to a bundle with `float.onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeattn.cli.common import console, need_training, say, write_json


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    *,
    out: Annotated[Path | None, typer.Option(help="The bundle; default: RUN.edgeattn beside the run.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report there.")] = None,
) -> None:
    """Export a run to ONNX for both engines and check it against torch on real pictures."""
    need_training("edgeattn export")
    from edgeattn.deploy.lint import lint
    from edgeattn.spec import to_json
    from edgeattn.train.runs import load_run
    from edgeattn.train.sources import open_data
    from edgeattn.workflow import export_run

    trained = load_run(run)
    bundle = export_run(trained, open_data(trained.recipe, run), out or run.with_name(run.name + ".edgeattn"))
    for artefact in bundle.artefacts:
        gate = artefact.gates["parity"]
        differs = f"differs from torch by {gate['difference']:.1e} of the range"
        say(f"{artefact.engine}: {differs} on {gate['n']} pictures, {gate['verdict']}")
    if broken := [finding for finding in lint(bundle) if not finding.is_advice]:
        say(f"lint: {len(broken)} rules of NPU compilers broken; edgeattn lint {bundle.path}")
    write_json(
        json, {"schema": "edgeattn.export/1", "bundle": str(bundle.path), "artefacts": to_json(bundle.artefacts)}
    )
    console.print(f"next:  edgeattn quantize {bundle.path} --run {run}", markup=False)
