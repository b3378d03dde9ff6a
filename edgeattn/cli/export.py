"""`edgeattn export`: a finished run to a bundle with `float.onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeattn.bundle import Bundle, load
from edgeattn.cli.common import console, need_training, say, write_json
from edgeattn.cli.lint import say_broken
from edgeattn.errors import NameNotFoundError


def export(
    run: Annotated[
        str, typer.Argument(help="Folder of a finished run; with --peer also a bundle, or its name in the zoo.")
    ],
    *,
    out: Annotated[Path | None, typer.Option(help="The bundle; default: RUN.edgeattn beside the run.")] = None,
    target: Annotated[
        str, typer.Option(help="Write the opset that its toolchain reads (rockchip: 19), and lint for it.")
    ] = "all",
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
    from edgeattn.deploy.export import EXPORTERS
    from edgeattn.deploy.lint import TARGETS, opset_for
    from edgeattn.spec import to_json
    from edgeattn.train.runs import load_run
    from edgeattn.train.sources import open_data
    from edgeattn.workflow import export_run

    if target not in (*TARGETS, "all"):
        raise NameNotFoundError("target", target, (*TARGETS, "all"))
    folder = Path(run)
    trained = load_run(folder)
    out = out or folder.with_name(folder.name + ".edgeattn")
    bundle = export_run(trained, open_data(trained.recipe, folder), out, opset=opset_for(target))
    for artefact in bundle.artefacts:
        gate = artefact.gates["parity"]
        differs = f"differs from torch by {gate['difference']:.1e} of the range"
        say(f"{artefact.engine}: {differs} on {gate['n']} pictures, {gate['verdict']}")
    if (exporter := bundle.artefacts[0].recipe["exporter"]) != EXPORTERS[0]:
        say(f"written by torch's {exporter} exporter, since what {EXPORTERS[0]} made was no file or not the same model")
    say_broken(bundle, target)
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
