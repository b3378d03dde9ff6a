"""`edgeattn info`: what is in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from edgeattn.cli.common import console, say, write_json

if TYPE_CHECKING:
    from edgeattn.bundle import Bundle

SCHEMA = "edgeattn.info/1"
LABELS_SHOWN = 20
"""Most labels named on screen."""


def info(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or its name in the zoo.")],
    json: Annotated[Path | None, typer.Option(help="Write it to this file, whole.")] = None,
) -> None:
    """Open and check a bundle, and say what it takes, gives, was made from and passed."""
    from edgeattn.bundle import load

    loaded = load(bundle)
    report = contents(loaded)
    for line in _lines(loaded, report):
        say(line)
    console.print(_table(report))
    for credit in _credits(loaded):
        say(credit)
    write_json(json, report)


def contents(bundle: Bundle) -> dict[str, Any]:
    """A bundle as other programs read it."""
    from edgeattn.spec import to_json

    artefacts = [
        to_json(artefact) | {"verdict": artefact.verdict, "size_bytes": bundle.size(artefact)}
        for artefact in bundle.artefacts
    ]
    golden = bundle.golden()
    return {
        "schema": SCHEMA,
        "name": bundle.name,
        "path": str(bundle.path),
        "digest": bundle.digest(),
        "size_bytes": sum((bundle.path / file).stat().st_size for file in bundle.sha256),
        "spec": to_json(bundle.spec),
        "artefacts": artefacts,
        "golden": len(golden["inputs"]) if golden else 0,
        "provenance": to_json(bundle.provenance),
    }


def _lines(bundle: Bundle, report: dict[str, Any]) -> list[str]:
    spec = bundle.spec
    labels = ", ".join(spec.labels[:LABELS_SHOWN]) + (", ..." if len(spec.labels) > LABELS_SHOWN else "")
    lines = [
        f"{bundle.name}: {spec.task}, {spec.input.height}x{spec.input.width} {spec.input.layout}, "
        f"{report['size_bytes'] / 1e6:.2f} MB, digest {report['digest']}",
        f"{len(spec.labels)} labels: {labels}",
    ]
    if spec.maps:
        blocks = ", ".join(f"{m.block} ({m.mechanism})" for m in spec.maps)
        lines.append(f"{len(spec.maps)} attention maps: {blocks}")
    if spec.rejection:
        lines.append(f"'{spec.rejection.label}' below a probability of {spec.rejection.threshold:.2f}")
    lines.append(f"{report['golden']} golden inputs")
    return lines


def _table(report: dict[str, Any]) -> Table:
    columns = ["file", "engine", "precision", "MB", "gates", "verdict"]
    drawn = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for artefact in report["artefacts"]:
        gates = ", ".join(f"{name} {gate['verdict']}" for name, gate in artefact["gates"].items()) or "none"
        size = f"{artefact['size_bytes'] / 1e6:.2f}"
        drawn.add_row(artefact["file"], artefact["engine"], artefact["precision"], size, gates, artefact["verdict"])
    return drawn


def _credits(bundle: Bundle) -> list[str]:
    """The licence of the bundle and whose work is in it."""
    lines = [f"licence: {bundle.provenance['licence']}"] if "licence" in bundle.provenance else []
    for entry in bundle.provenance.get("attributions", ()):
        said = [str(entry[key]) for key in ("name", "licence", "credit", "source") if entry.get(key)]
        lines.append(f"from {', '.join(said)}")
    return lines
