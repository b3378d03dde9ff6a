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
from edgeattn.imaging import Picture, prepare, read_picture
from edgeattn.spec import InputSpec
from edgeattn.tasks.classify import decode

CASES = 24
"""Most pictures shown."""
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
    truth = np.array(found.truth) if found.truth else None
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
        content["classes"] = sorted(shown.classes, key=lambda score: score.f1)
    engine = open_artefact(bundle, bundle.artefact(shown.engine, shown.precision), maps=True)
    try:
        order = worst_first(shown, truth)
        content["cases"] = [_case(bundle, engine, shown, (found.truth, names), at) for at in order[:CASES]]
        wrong = 0 if truth is None else int(np.sum(np.array(shown.answers) != truth))
        content["cases_title"] = (
            f"Worst first: {wrong} wrong of {found.n}" if truth is not None else "Least certain first"
        )
        if bundle.spec.maps:
            probed = np.random.default_rng(0).permutation(found.n)[:PROBED]
            charts += _faithfulness(bundle, engine, [names[i] for i in probed])
    finally:
        engine.close()
    report.write(path, charts=charts, **content)


def worst_first(result: Result, truth: NDArray[np.int64] | None) -> list[int]:
    """Places of the pictures: wrong answers by how certain they were, then right ones by how uncertain."""
    scores = np.array(result.scores)
    right = np.ones(len(scores), bool) if truth is None else np.array(result.answers) == truth
    return [int(i) for i in np.lexsort((np.where(right, scores, -scores), right))]


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
