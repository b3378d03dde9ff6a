"""The HTML report of `edgeattn verify`: worst cases first, then calibration, confusion, classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn import __version__, maps
from edgeattn.bundle import Bundle
from edgeattn.cli.verify import figures
from edgeattn.deploy.results import Report, Result
from edgeattn.engines import open_artefact
from edgeattn.engines.base import Engine
from edgeattn.evaluation import classify, looking, report
from edgeattn.evaluation.detect import ClassPrecision
from edgeattn.evaluation.judge import judge_of
from edgeattn.imaging import Picture, prepare, read_picture
from edgeattn.spec import InputSpec
from edgeattn.tasks import decode as decode_any
from edgeattn.tasks import draw
from edgeattn.tasks.classify import decode

CASES = 24
"""Most pictures shown."""
DRAWN_SIDE = 360
"""Pixels across a picture with boxes or regions."""
PROBED = 24
"""Most pictures on which it is tried whether the answer hangs on what the attention marks."""
COLOURS = {"attention": "#2a7", "at random": "#999"}


def write_report(path: Path, bundle: Bundle, found: Report, names: Sequence[Path], rows: list[list[str]]) -> None:
    """Write it.

    Args:
        path: the file.
        bundle: what was measured.
        found: what was found.
        names: the pictures' files, in the order of the report.
        rows: the table that the screen shows, its head first.
    """
    shown = next((r for r in found.results if r.verdict == "passed" and r.precision == "int8"), found.results[0])
    who = f"{shown.engine} {shown.precision}"
    classified = found.task == "classify"
    truth = np.array(found.truth) if found.truth and classified else None
    content: dict[str, Any] = {
        "title": f"{bundle.name}: does it still see what it saw?",
        "subtitle": f"{found.n} pictures, {who} shown; {bundle.path}",
        "notes": figures(shown),
        "columns": rows[0],
        "rows": rows[1:],
        "foot": f"edgeattn {__version__}, bundle {found.digest[:16]}",
    }
    charts = []
    if truth is not None:
        answers = np.array(shown.answers)
        calibration = classify.calibration(np.array(shown.scores), answers == truth)
        charts.append(report.reliability(calibration))
        counts = classify.confusion(truth, np.where(answers < -1, -1, answers), len(bundle.spec.labels))
        if len(counts) <= classify.MOST_COLUMNS:
            content["matrix"] = report.matrix(counts, bundle.spec.labels, who)
        else:
            content["confused"] = classify.confusion_text(counts, bundle.spec.labels)
    content["classes"] = _classes(shown)
    engine = open_artefact(bundle, bundle.artefact(shown.engine, shown.precision), maps=True)
    try:
        order = worst_first(shown)
        case = _case if classified else _drawn_case
        content["cases"] = [case(bundle, engine, shown, (found.truth, names), at) for at in order[:CASES]]
        content["cases_title"], content["large"] = _title(found, shown), not classified
        content["legend"] = _legend(found)
        if bundle.spec.maps and classified:
            probed = np.random.default_rng(0).permutation(found.n)[:PROBED]
            charts += _faithfulness(bundle, engine, [names[i] for i in probed])
    finally:
        engine.close()
    report.write(path, charts=charts, **content)


def worst_first(result: Result) -> list[int]:
    """Places of the pictures: the worst answers by how certain they were, then the best ones by how uncertain.

    Without labels, those that float answers otherwise, then the least certain.
    """
    scores = np.array(result.scores)
    flips = np.isin(np.arange(len(scores)), result.flips)
    worths = np.array(result.worths) if result.worths else np.where(flips, 0.9, 1.0)
    return [int(i) for i in np.lexsort((np.where(worths >= 0.5, scores, -scores), worths))]


def _title(found: Report, shown: Result) -> str:
    if not found.truth:
        return "Least like float, then least certain first"
    if found.task == "classify":
        return f"Worst first: {sum(worth == 0 for worth in shown.worths)} wrong of {found.n}"
    return f"Worst first, by {'F1' if found.task == 'detect' else found.measured.name} of the picture"


def _legend(found: Report) -> str:
    if found.task == "classify":
        return "Left: what the model sees. Right: where it looks, the mean of its attention maps."
    left = "what is there" if found.truth else "the picture"
    return f"Left: {left}. Right: what is answered, and beneath it the mean of its attention maps, where it has some."


def _classes(shown: Result) -> list[list[str]]:
    """The figures class by class, the worst first, below their head; empty without labels."""
    rows: list[tuple[float, list[str]]] = []
    head: list[str] = []
    figures_of: tuple[float, ...]
    for one in shown.classes:
        if isinstance(one, classify.ClassScore):
            head = ["class", "pictures", "precision %", "recall %", "F1 %"]
            worth, figures_of = one.f1, (one.precision, one.recall, one.f1)
        elif isinstance(one, ClassPrecision):
            head, worth, figures_of = ["class", "boxes", "AP50 %", "AP %"], one.ap50, (one.ap50, one.ap)
        else:
            head, worth, figures_of = ["class", "pixels", "IoU %", "boundary F1 %"], one.iou, (one.iou, one.boundary_f1)
        rows.append((worth, [one.label, str(one.n), *(f"{100 * figure:.1f}" for figure in figures_of)]))
    return [head, *(row for _, row in sorted(rows, key=lambda each: each[0]))] if rows else []


def _drawn_case(
    bundle: Bundle, engine: Engine, result: Result, data: tuple[Sequence[Any], Sequence[Path]], at: int
) -> report.Case:
    """A picture with what is there, and with what is answered, drawn into it."""
    truth, names = data
    judge, picture = judge_of(bundle.spec), read_picture(names[at])
    outputs = engine.infer(prepare(picture, bundle.spec.input))
    size = (picture.shape[0], picture.shape[1])
    given = decode_any(outputs, bundle.spec, size)
    held = {m.output: outputs[m.output] for m in bundle.spec.maps}
    beneath = maps.overlay(picture, maps.mean_map(held), bundle.spec.input) if held else picture
    told = judge.told(judge.marks(truth[at], judge.answer(outputs, size))) if truth else given.label
    return report.Case(
        report.jpeg(draw(picture, judge.shown(truth[at])) if truth else picture, DRAWN_SIDE),
        report.jpeg(draw(beneath, given), DRAWN_SIDE),
        None,
        told,
        None,
        f"{names[at].parent.name}/{names[at].name}",
        f"{result.precision} answers otherwise than float" if at in result.flips else "",
    )


def _case(
    bundle: Bundle, engine: Engine, result: Result, data: tuple[Sequence[int], Sequence[Path]], at: int
) -> report.Case:
    truth, names = data
    seen = _seen(bundle, read_picture(names[at]))
    outputs = _infer(bundle, engine, seen)
    held = {m.output: outputs[m.output] for m in bundle.spec.maps}
    looked = maps.overlay(seen, maps.mean_map(held), _whole(bundle)) if held else seen
    flipped = "int8 answers otherwise than float" if at in result.flips else ""
    return report.Case(
        report.jpeg(seen),
        report.jpeg(looked),
        _label(bundle, truth[at]) if truth else None,
        _label(bundle, result.answers[at]),
        round(100 * result.scores[at]),
        f"{names[at].parent.name}/{names[at].name}",
        flipped,
    )


def _label(bundle: Bundle, index: int) -> str:
    return bundle.spec.labels[index] if index >= 0 else classify.NONE


def _whole(bundle: Bundle) -> InputSpec:
    """The model's input for a picture that is nothing but what it sees."""
    return replace(bundle.spec.input, crop=1.0)


def _seen(bundle: Bundle, picture: Picture) -> Picture:
    """The part that the model sees, at its size, (H, W, 3) BGR bytes."""
    image = prepare(picture, replace(bundle.spec.input, layout="nhwc_u8"))
    return np.ascontiguousarray(image[0, ..., ::-1]).astype(np.uint8)


def _infer(bundle: Bundle, engine: Engine, seen: Picture) -> dict[str, NDArray[Any]]:
    return engine.infer(prepare(seen, _whole(bundle)))


def _faithfulness(bundle: Bundle, engine: Engine, names: Sequence[Path]) -> list[report.Chart]:
    """Insertion and deletion curves of the mean map, against a map at random."""
    curves: dict[str, list[looking.Faithfulness]] = {name: [] for name in COLOURS}
    rng = np.random.default_rng(0)
    for name in names:
        seen = _seen(bundle, read_picture(name))
        outputs = _infer(bundle, engine, seen)
        index = decode(outputs, bundle.spec).index
        if index < 0:
            continue

        def probability(picture: Picture, index: int = index) -> float:
            return float(decode(_infer(bundle, engine, picture), bundle.spec).probabilities[index])

        mean = maps.mean_map({m.output: outputs[m.output] for m in bundle.spec.maps})
        for kind, found in (("attention", mean), ("at random", rng.random(mean.shape))):
            curves[kind].append(looking.faithfulness(found, seen, probability))
    if not curves["attention"]:
        return []
    return [_curve(curves, "insertion", "shown"), _curve(curves, "deletion", "covered")]


def _curve(curves: Mapping[str, Sequence[looking.Faithfulness]], kind: str, what: str) -> report.Chart:
    means = {name: np.mean([getattr(f, kind) for f in found], axis=0) for name, found in curves.items()}
    areas = {name: float(np.mean([getattr(f, f"{kind}_auc") for f in found])) for name, found in curves.items()}
    better = "higher" if kind == "insertion" else "lower"
    told = ", ".join(f"{name} {area:.2f}" for name, area in areas.items() if math.isfinite(area))
    return report.curves(
        kind.capitalize(),
        {name: (values.tolist(), COLOURS[name]) for name, values in means.items()},
        f"share of the picture {what}, most attended first",
        "probability of the answer",
        f"Area: {told}; {better} than at random says that the answer hangs on what the attention marks.",
    )
