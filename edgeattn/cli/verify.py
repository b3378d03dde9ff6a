"""`edgeattn verify`: did anything break between float and int8, between the maker's machine and this one?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from edgeattn.cli.common import SkipMissing, console, say, write_json
from edgeattn.errors import DataError

if TYPE_CHECKING:
    from edgeattn.deploy.measured import Shown
    from edgeattn.deploy.results import Report, Result
    from edgeattn.deploy.structure import Structure
    from edgeattn.evaluation.significance import Verdict
    from edgeattn.spec import Spec

NONE = "none"
"""Name of the class folder that holds pictures of none of the labels, beside the spec's own name for that."""
FLIPS_SHOWN = 5
"""Most pictures named that an artefact answers otherwise than float."""
OTHERS = {
    "map": "mAP, of IoU 0.5 to 0.95,",
    "pixel_accuracy": "right pixels",
    "boundary_f1": "boundary F1",
    "mask_map50": "mAP50 of masks",
    "mask_map": "mAP of masks",
}
"""Names of figures beside the one that a task is judged by."""
EXIT_CODES = {"passed": 0, "failed": 1, "cannot tell": 3}


def verify(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or its name in the zoo.")],
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Class folders, COCO, YOLO or masks, as the model's task wants, or a folder of pictures; "
            "default: the maker's golden inputs."
        ),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Only this engine: onnxruntime or openvino.")] = None,
    precision: Annotated[str | None, typer.Option(help="Only this precision: float, bf16 or int8.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute one inference.")] = None,
    max_loss: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Top-1, mAP50 or mIoU that int8 may lose, as a fraction.")
    ] = 0.01,
    skip_missing: SkipMissing = False,
    masks: Annotated[
        Path | None,
        typer.Option(help="Where to look: a folder of masks or gaze maps that mirrors --data, or boxes.json."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a report with pictures to this file, worst cases first.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the whole report to this file.")] = None,
) -> None:
    """Measure every artefact of a bundle, the saved file through its engine, and judge it against float."""
    from edgeattn.bundle import load
    from edgeattn.deploy.verify import verify as measure
    from edgeattn.timing import environment

    if (masks or html) and not data:
        raise DataError(f"{'--masks' if masks else '--html'} needs pictures; give them with --data DIR")
    loaded = load(bundle)
    pictures = Pictures(data, loaded.spec, masks, skip_missing=skip_missing) if data else None
    report = measure(
        loaded,
        iter(pictures) if pictures else None,
        engines=[engine] if engine else None,
        precisions=[precision] if precision else None,
        threads=threads,
        max_loss=max_loss,
    )
    what = f"{report.n} pictures of {data}" if pictures else "the maker's golden inputs alone (pictures: --data DIR)"
    say(f"{loaded.name} on {what}")
    show(report)
    payload = report.json() | {"environment": environment()}
    if pictures:
        if pictures.untold:
            say(
                f"{masks} does not tell where to look on {pictures.untold} of the pictures: they count for the answers alone"
            )
        for note in pictures.notes:
            say(note)
        for path, reason in pictures.skipped:
            say(f"skipped {path}: {reason}")
        _name_flips(report, payload, pictures)
    if pictures and html:
        from edgeattn.cli.verify_report import write_report

        write_report(html, loaded, report, pictures.names, [columns(report), *[_cells(r) for r in report.results]])
        say(f"report: {html}")
    write_json(json, payload)
    verdict_exit(report.verdict)


class Pictures:
    """The pictures of a folder with their truths, in a seeded random order, read one at a time."""

    def __init__(self, root: Path, spec: Spec, masks: Path | None = None, *, skip_missing: bool = False) -> None:
        """List the pictures under `root`: labelled as the task wants it, or, in a folder without folders, not labelled.

        Raises:
            DataError: no pictures, a class that is no label, or masks that are none.
        """
        import numpy as np

        from edgeattn.datasets.kinds import has_no_annotations
        from edgeattn.datasets.labelled import labelled_pictures
        from edgeattn.datasets.targets import check_targets, open_targets
        from edgeattn.imaging import list_pictures

        self.notes: tuple[str, ...] = ()
        """What the user should know of the pictures."""
        listed: list[tuple[Path, Any]]
        if has_no_annotations(root, spec.task):
            listed = [(path, None) for path in list_pictures(root)]
        elif spec.task == "classify":
            others = {NONE: -1, spec.rejection.label: -1} if spec.rejection else None
            listed = [(sample.path, sample.label) for sample in labelled_pictures(root, spec.labels, others)]
        else:
            listed = self._annotated(root, spec, skip_missing=skip_missing)
        if not listed:
            raise DataError(f"{root} holds no pictures; give a folder of labelled ones, or of pictures alone")
        self._listed = [listed[i] for i in np.random.default_rng(0).permutation(len(listed))]
        self._targets = open_targets(masks, root) if masks else None
        self.untold = check_targets(self._targets, [path for path, _ in self._listed]) if self._targets else 0
        """Pictures of which the masks do not tell where to look."""
        self.names: list[Path] = []
        """Pictures given so far."""
        self.skipped: list[tuple[Path, str]] = []
        """Pictures that cannot be read, and why."""

    def __len__(self) -> int:
        return len(self._listed)

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        return [path for path, _ in self._listed]

    def _annotated(self, root: Path, spec: Spec, *, skip_missing: bool) -> list[tuple[Path, Any]]:
        from edgeattn.datasets.known import annotated_pictures, held_out

        found = annotated_pictures(root, spec, skip_missing=skip_missing)
        taken, self.notes = held_out(found), found.notes
        if spec.prototypes and not found.map_names:
            self.notes += (f"{root}: has boxes without outlines, so masks are not judged",)
        if len(taken) < len(found.pictures):
            some = f"measured on its part '{taken[0].part}': {len(taken)} of {len(found.pictures)} pictures"
            self.notes += (f"{root}: {some}",)
        return [(one.path, one) for one in taken]

    def __iter__(self) -> Iterator[Shown]:
        from edgeattn.errors import PictureError
        from edgeattn.imaging import read_picture

        for path, truth in self._listed:
            try:
                picture = read_picture(path)
            except PictureError as error:
                self.skipped.append((path, str(error).removeprefix(f"{path}: ")))
                continue
            where = self._targets.of(path, picture.shape) if self._targets else None
            self.names.append(path)
            yield (picture, truth) if where is None else (picture, truth, where)
        if not self.names:
            raise DataError(f"none of the {len(self.skipped)} pictures can be read; the first: {self.skipped[0][1]}")


def show(report: Report) -> None:
    """Print the report: the table, and what it has no room for."""
    console.print(table(report))
    for result in report.results:
        if told := figures(result):
            say(f"{result.engine} {result.precision}: {'; '.join(told)}")
    for line in remarks(report):
        say(line)


def table(report: Report) -> Table:
    """The report as a table for the screen."""
    drawn = Table(*columns(report), box=None, pad_edge=False, header_style="bold")
    for result in report.results:
        style = {"passed": "green", "failed": "red"}.get(result.verdict, "yellow")
        *cells, verdict = _cells(result)
        drawn.add_row(*cells, f"[{style}]{verdict}[/]")
    return drawn


def columns(report: Report) -> list[str]:
    """The head of the table."""
    return ["artefact", f"{report.measured.name} %", "as float %", "loss, points", "maps, rank", "ms", "verdict"]


def _cells(result: Result) -> list[str]:
    loss: Any = result.gates.get("loss")
    interval = f"{100 * loss['value']:.1f} ({100 * loss['low']:.1f}, {100 * loss['high']:.1f})" if loss else "-"
    return [
        f"{result.engine} {result.precision}",
        "-" if result.figure is None else f"{100 * result.figure:.2f}",
        "-" if result.agreement is None else f"{100 * result.agreement:.2f}",
        interval,
        "-" if result.map_js is None else f"{result.map_js:.3f}, {result.map_rank:.2f}",
        "-" if result.latency_ms is None else f"{result.latency_ms:.2f}",
        result.verdict,
    ]


def figure_name(key: str) -> str:
    """What a task's figure is called in words, by its key in JSON."""
    from edgeattn.tasks import FIGURES

    return next((figure.name for figure in FIGURES.values() if figure.key == key), key)


def executed_layers(found: Structure) -> str:
    """How many quantized layers are executed on integers here, and which are not."""
    done = found.quantized - len(found.fell_back)
    line = f"{done} of {found.quantized} quantized layers are executed on integers here"
    if found.fell_back:
        more = f" and {len(found.fell_back) - 3} more" if len(found.fell_back) > 3 else ""
        line += f" (in float: {', '.join(found.fell_back[:3])}{more})"
    if found.unasked:
        line += f"; {len(found.unasked)} that were left in float are, too: {', '.join(found.unasked[:3])}"
    if found.shifted:
        line += (
            f"; {len(found.shifted)} depthwise convolutions by a slow kernel, as their activations have a zero point (NNCF's "
            f"preset MIXED; PERFORMANCE has none): {', '.join(found.shifted[:3])}"
        )
    return line


def figures_in_words(found: Mapping[str, float]) -> list[str]:
    """What is known of the answers beside the figure that a task is judged by."""
    parts = [f"{name} {100 * found[key]:.1f} %" for key, name in OTHERS.items() if key in found]
    if "calibration_error" in found:
        parts.append(
            f"precision {100 * found['precision']:.1f}, recall {100 * found['recall']:.1f}, F1 {100 * found['f1']:.1f} % "
            f"(macro), calibration error {100 * found['calibration_error']:.1f} points"
        )
    return parts


def figures(result: Result) -> list[str]:
    """What the table has no room for: other figures, the means over classes, calibration, and where it looks."""
    found = dict(result.figures)
    if result.macro is not None and result.calibration_error is not None:
        found |= asdict(result.macro) | {"calibration_error": result.calibration_error}
    parts = figures_in_words(found)
    if result.precision != "float" and result.blocks:
        worst = min(result.blocks, key=lambda block: block.rank)
        parts.append(
            f"attention least like float's in {worst.block}: moved {worst.js:.3f} of the way to another picture's, rank "
            f"correlation {worst.rank:.2f}, {100 * worst.overlap:.0f} % of what float marks most"
        )
    if result.structure is not None:
        parts.append(executed_layers(result.structure))
    if told := result.looking:
        parts.append(
            f"looks: {100 * told['energy_inside']:.0f} % inside, points inside on "
            f"{100 * told['pointing']:.0f} %, KL {told['kl']:.2f}, cosine {told['cosine']:.2f}"
        )
    return parts


def remarks(report: Report) -> list[str]:
    """What the table leaves out: files that run otherwise than they say, gates not passed and what to do next."""
    works = [r for r in report.results if r.verdict == "passed"]
    still = "no artefact passed"
    if works:
        engine, precision = works[0].engine, works[0].precision
        still = f"this one works: edgeattn run {report.bundle} --engine {engine} --precision {precision}"
    lines = []
    for result in report.results:
        name = f"{result.engine} {result.precision}"
        if result.precision == "int8" and "int8" not in result.executed_precision and "load" not in result.gates:
            lines.append(f"{name} computes in {result.executed_precision} here, not in int8")
        for kind, gate in result.gates.items():
            if gate["verdict"] == "failed":
                lines.append(f"{name} failed: {_meaning(kind, gate, report.measured.name)}; {still}")
            elif gate["verdict"] == "cannot tell":
                needed = gate.get("needed_n")
                remedy = f"about {needed} pictures would tell" if needed else "it lies too near the bound"
                what = f"{kind} of {gate['block']}" if "block" in gate else kind
                lines.append(f"{name} cannot tell ({what}): {remedy}; give more with --data")
    return lines


def _meaning(kind: str, gate: Any, figure: str) -> str:
    """What it means that a gate failed; `figure` is the name of the task's."""
    value, bound = gate.get("value", 0.0), gate.get("bound", 0.0)
    if kind == "loss":
        return f"it loses {100 * value:.1f} points of {figure}, {100 * bound:.1f} are allowed"
    if kind == "flips" or (kind == "golden" and "value" in gate):
        return (
            f"it answers otherwise than float on {100 * value:.1f} % of the pictures, {100 * bound:.0f} % are allowed"
        )
    if kind == "golden" and "difference" in gate:
        return f"its outputs differ from the maker's by {gate['difference']:.1e} of their range"
    if kind == "maps":
        return f"its attention in {gate['block']} has moved {value:.2f} of the way to another picture's, {bound} is allowed"
    if kind == "ranks":
        return (
            f"its attention in {gate['block']} orders the places otherwise: rank correlation {1 - value:.2f}, "
            f"{1 - bound:.2f} is the least"
        )
    if kind == "finite":
        return f"its outputs are not all numbers on {gate['pictures']} pictures"
    return str(gate.get("reason", kind))


def _name_flips(report: Report, payload: dict[str, Any], pictures: Pictures) -> None:
    """Put files in the place of the changed pictures' places, and say the first."""
    for result, row in zip(report.results, payload["results"], strict=True):
        row["flips"] = [str(pictures.names[i]) for i in result.flips]
        if result.flips:
            shown = ", ".join(row["flips"][:FLIPS_SHOWN])
            more = f" and {len(result.flips) - FLIPS_SHOWN} more" if len(result.flips) > FLIPS_SHOWN else ""
            say(f"{result.engine} {result.precision} answers otherwise than float on: {shown}{more}")
    payload["skipped"] = [{"path": str(path), "reason": reason} for path, reason in pictures.skipped]


def verdict_exit(verdict: Verdict) -> None:
    """End with a verdict's exit code: 1 failed, 3 cannot tell; passed goes on.

    Raises:
        typer.Exit: it did not pass.
    """
    if code := EXIT_CODES[verdict]:
        raise typer.Exit(code)
