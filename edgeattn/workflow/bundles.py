"""From a finished run to a bundle, on the run's own pictures: export, quantize, fine-tune for int8, measure what int8 costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from edgeattn.bundle import Bundle, sha256
from edgeattn.datasets.annotated import Annotated
from edgeattn.datasets.folder import Sample
from edgeattn.datasets.known import annotated_pictures, held_out
from edgeattn.datasets.labelled import labelled_pictures
from edgeattn.datasets.splits import kinds_of, stratified_sample
from edgeattn.deploy.calibration import FEWEST, PICTURES, Calibration, draw, some_of
from edgeattn.deploy.export import GOLDEN_PICTURES, Deployed, export, recipe_digest, to_onnx
from edgeattn.deploy.ladder import Ladder
from edgeattn.deploy.lint import OPSET
from edgeattn.deploy.quantize import Quantized, quantize
from edgeattn.deploy.recipes.plan import Plan
from edgeattn.deploy.sensitivity import Sensitivity, sensitivity
from edgeattn.errors import DataError
from edgeattn.imaging import Picture, prepare
from edgeattn.nn.attention import EMPTY
from edgeattn.spec import to_json
from edgeattn.timing.bar import progress_bar
from edgeattn.train.augment import Augment
from edgeattn.train.loader import ArrayPictures, FolderViews, PictureFiles, TrainingData
from edgeattn.train.recipe import Recipe
from edgeattn.train.runs import Trained, load_run, weights_attributions

QAT_LR = 1 / 32
"""Learning rate of a quantization-aware fine-tuning, as a fraction of its run's: BatchNorm is gone."""
SENSITIVITY_PICTURES = 500
"""Labelled pictures that each row of a sensitivity table is measured on: many rows tell more than a tenth of a point."""


def export_run(trained: Trained, data: TrainingData, path: Path, *, opset: int = OPSET, **provenance: Any) -> Bundle:
    """Export a finished run to a bundle, checked on its validation pictures (spread over the classes)."""
    if not len(data.validation):
        raise DataError(f"{trained.recipe.data} has no validation pictures to check the export on; add pictures")
    places = np.linspace(0, len(data.validation) - 1, min(GOLDEN_PICTURES, len(data.validation))).astype(int)
    recipe = to_json(trained.recipe)
    sources = [dict(a) for a in data.attributions] + weights_attributions(trained.folder)
    told = {
        "recipe_digest": recipe_digest(recipe),
        "recipe": recipe,
        "attributions": [a for i, a in enumerate(sources) if a not in sources[:i]],
        **provenance,
    }
    return export(
        trained.model,
        path,
        labels=trained.labels,
        pictures=[data.validation[int(i)][0] for i in places],
        task=trained.recipe.task,
        input=trained.recipe.input,
        mechanism=trained.recipe.attention,
        provenance=told,
        opset=opset,
    )


def qat_recipe(run: Trained, epochs: int) -> Recipe:
    """The recipe that fine-tunes a finished run with int8's rounding in the way, taught by that run itself: answers and maps."""
    if run.recipe.qat:
        raise DataError(f"{run.folder} has been fine-tuned for int8 already; name the run that it came from")
    return replace(
        run.recipe,
        qat=True,
        start=str(run.folder),
        teacher=str(run.folder),
        distill="kd" if run.recipe.attention in EMPTY else "kd+maps",
        supervise="none",
        weighting="fixed",
        compile=False,
        fgsm=0.0,
        dropout=0.0,
        epochs=epochs,
        lr=run.recipe.lr * QAT_LR,
    )


def quantize_run(
    bundle: Bundle,
    data: TrainingData,
    folder: Path,
    calibration: Calibration | None = None,
    *,
    minutes: float = 0.0,
    tune: Callable[[], Trained] | None = None,
    portable: bool = False,
    progress: bool = False,
) -> Quantized:
    """Quantize a bundle on the set drawn from its training pictures (or the one given), whose manifest is written to `folder`.

    With `minutes`, up the ladder, whose measurements are kept in `folder`. `tune` makes a quantization-aware run: its weights
    are the ladder's last rung, or without `minutes` what the int8 files are made of. The float file stays what it is, and is
    what they are measured against.

    Raises:
        DataError: too few training pictures for a calibration set, or some of it are tested or measured on.
    """
    chosen = calibration or _calibration(data)
    pictures = chosen.pictures()
    for kept_apart, part in (
        (data.test, "test split"),
        (data.validation, "validation split, which int8 is measured on"),
    ):
        if seen := _also_in(chosen, pictures, kept_apart):
            raise DataError(
                f"{len(seen)} of the calibration pictures are in the {part}, too: {some_of(seen)}; calibrate on training "
                "pictures that are nowhere else"
            )
    manifest = folder / "calibration.toml"
    chosen.write(manifest)
    told: dict[str, Any] = {
        "calibration": {
            "pictures": len(chosen),
            "seed": chosen.seed,
            "source": chosen.source,
            "manifest_digest": recipe_digest(dict(zip(chosen.files, chosen.digests, strict=True))),
        }
    }

    def tuned() -> ModelProto:
        assert tune
        run = tune()
        told["qat"] = {"recipe": to_json(run.recipe), "recipe_digest": recipe_digest(to_json(run.recipe))}
        return to_onnx(Deployed(run.model), bundle.spec)

    if not minutes:
        source = tuned() if tune else None
        return quantize(bundle, pictures, data.validation, source=source, provenance=told, portable=portable)
    return quantize(
        bundle, pictures, data.validation, provenance=told, minutes=minutes, tune=tuned if tune else None,
        memory=folder / "ladder.jsonl", portable=portable, progress=progress,
    )  # fmt: skip


def _also_in(chosen: Calibration, pictures: Sequence[Picture], part: Sequence[tuple[Picture, Any]]) -> list[str]:
    """Which pictures of a calibration set a part of the data holds: by their files, or by their pixels where it is in memory."""
    if isinstance(part, ArrayPictures):
        held = {picture.tobytes() for picture in part.pictures}
        return [file for file, picture in zip(chosen.files, pictures, strict=True) if picture.tobytes() in held]
    digests = {sample.digest or sha256(sample.path) for sample in getattr(part, "samples", ())}
    return [file for file, digest in zip(chosen.files, chosen.digests, strict=True) if digest in digests]


def outside_data(bundle: Bundle, pictures: Path, *, skip_missing: bool = False) -> TrainingData:
    """Pictures for a bundle from elsewhere: two of seven to calibrate on (`calibration.PICTURES` at most), the rest to measure on.

    Annotated pictures that are split into parts are calibrated on by their train part, and measured on by the others. Of
    copies (the same bytes) one is taken.

    Raises:
        DataError: names that are no labels of the bundle, a picture that is missing, or too few.
    """
    labels: tuple[str, ...] = bundle.spec.labels
    notes: tuple[str, ...] = ()
    root = pictures if pictures.is_dir() else pictures.parent
    kept: tuple[Annotated, ...] = ()
    if bundle.spec.task == "classify":
        listed, names = [_digested(sample) for sample in labelled_pictures(pictures, labels)], labels
        truths: dict[Path, Any] = {sample.path: sample for sample in listed}
    else:
        found = annotated_pictures(pictures, bundle.spec, skip_missing=skip_missing)
        kinds, names = kinds_of(found)
        pairs = zip(found.pictures, kinds, strict=True)
        listed = [Sample(one.path, kind, digest=one.digest) for one, kind in pairs]
        truths, notes = {one.path: one for one in found.pictures}, found.notes
        kept = held_out(found)
        kept = kept if kept != found.pictures else ()
    samples = list({sample.digest: sample for sample in listed}.values())
    if copies := len(listed) - len(samples):
        notes += (f"{copies} pictures are copies of others: left out",)
    held = {sample.path: truths[sample.path] for sample in samples}
    if kept:
        held, away = {one.path: one for one in kept}, {one.digest for one in kept}
        samples = [sample for sample in samples if sample.digest not in away]
    if len(held.keys() | {sample.path for sample in samples}) <= FEWEST:
        raise DataError(
            f"{pictures} holds {len(held)} different pictures: {FEWEST} calibrate int8, and it is measured on others; give some "
            "300 more, which tell a loss of one point"
        )
    some = stratified_sample(samples, max(FEWEST, min(PICTURES, 2 * len(held) // 7)), seed=0)
    taken = {sample.path for sample in some}
    rest = PictureFiles([one for path, one in held.items() if path not in taken])
    return TrainingData(
        labels, FolderViews(some, bundle.spec.input, Augment()), rest, calibration=draw(some, names, root), notes=notes
    )


def _digested(sample: Sample) -> Sample:
    try:
        return replace(sample, digest=sha256(sample.path))
    except OSError as error:
        raise DataError(
            f"{sample.path} cannot be read ({error.strerror}); restore it, or take it off the list"
        ) from error


def _calibration(data: TrainingData) -> Calibration:
    if data.calibration is None:
        raise DataError(
            "too few training pictures to calibrate int8 on (32 at least); the float bundle works. Add pictures"
        )
    return data.calibration


def sensitivity_run(
    bundle: Bundle, data: TrainingData, folder: Path, engines: Sequence[str], *, minutes: float, progress: bool = False
) -> list[Sensitivity]:
    """What int8 costs layer by layer and block by block, for each engine, from the int8 that the bundle holds (else the default).

    Args:
        bundle: the bundle.
        data: the pictures of the run that it comes from.
        folder: that run's folder, which keeps what was measured.
        engines: whose int8.
        minutes: for all engines together.
        progress: show a bar with the time left.

    Raises:
        DataError: too few training pictures for a calibration set, or the run of the fine-tuned weights is gone.
    """
    inputs = [prepare(picture, bundle.spec.input) for picture in _calibration(data).pictures()]
    some = np.random.default_rng(0).permutation(len(data.validation))[:SENSITIVITY_PICTURES]
    labelled = [data.validation[int(i)] for i in some]
    found, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, progress_bar(progress, a_second=2) as bar:
        for i, engine in enumerate(engines):
            held = next((a.recipe for a in bundle.artefacts if (a.engine, a.precision) == (engine, "int8")), {})
            source = None
            if held.get("tuned"):
                source = to_onnx(Deployed(load_run(folder / "qat").model), bundle.spec)
            own = Path(scratch) / engine
            own.mkdir()
            ladder = Ladder(bundle, inputs, labelled, own, source, memory=folder / "ladder.jsonl")
            left = (60.0 * minutes - (time.monotonic() - began)) / (len(engines) - i)
            found.append(sensitivity(ladder, engine, Plan.of(held), left, bar))
    return found
