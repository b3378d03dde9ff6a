"""What `make` chooses by itself."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import discs
import numpy as np
import pytest

from edgeattn import workflow
from edgeattn.bundle import Bundle, sha256
from edgeattn.datasets.folder import Sample
from edgeattn.errors import DataError
from edgeattn.nn.attention import ATTENTIONS
from edgeattn.spec import InputSpec, Spec, Task
from edgeattn.train import Recipe, Trained, TrainingData
from edgeattn.train.loader import PictureFiles
from edgeattn.train.recipe import BATCHES, RATES, SIZES
from edgeattn.train.runs import check


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_starts_where_weights_fit(attention: str) -> None:
    recipe = workflow.photo_recipe(Path("photos"), model="pico", attention=attention)
    assert recipe.start == ("none" if attention == "wide" else "zoo")
    check(recipe)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_so_do_detectors_and_segmenters_and_learn_fast_what_they_have_not_learnt(task: Task) -> None:
    pico, lite = (workflow.photo_recipe(Path("things"), task=task, model=model) for model in ("pico", "lite"))
    assert (pico.start, lite.start) == ("zoo", "none")
    assert (pico.lr, pico.batch_size, pico.imgsz) == (RATES[task], BATCHES[task], SIZES[task])
    assert lite.lr < pico.lr
    check(pico)


def discs_bundle(path: Path) -> Bundle:
    return Bundle(path, Spec("classify", InputSpec(32, 32), ("blue", "green", "red")), ())


def test_outside_pictures_are_split_without_copies(tmp_path: Path) -> None:
    photos = discs.write(tmp_path / "photos", 20)
    for i in range(40):
        shutil.copyfile(photos / "red" / "50.png", photos / "red" / f"copy{i}.png")
    data = workflow.outside_data(discs_bundle(tmp_path / "b.edgeattn"), photos)
    assert data.calibration is not None
    measured = {sha256(sample.path) for sample in data.validation.samples}
    assert (len(data.calibration), len(measured), len(data.validation)) == (32, 28, 28)
    assert measured.isdisjoint(data.calibration.digests)
    assert data.notes == ("40 pictures are copies of others: left out",)


def test_too_few_outside_pictures_say_how_many_it_takes(tmp_path: Path) -> None:
    photos = discs.write(tmp_path / "photos", 11)
    (photos / "red" / "32.png").unlink()
    with pytest.raises(
        DataError, match=r"holds 32 different pictures: 32 calibrate int8, and it is measured on others"
    ):
        workflow.outside_data(discs_bundle(tmp_path / "b.edgeattn"), photos)


@pytest.mark.parametrize(("part", "told"), [("test", "the test split"), ("validation", "the validation split")])
def test_pictures_in_two_of_ones_own_sets_are_named(part: str, told: str, tmp_path: Path) -> None:
    bundle = discs_bundle(tmp_path / "b.edgeattn")
    data = workflow.outside_data(bundle, discs.write(tmp_path / "photos", 20))
    assert data.calibration is not None
    first, second = data.calibration.files[:2]
    doubled = PictureFiles([Sample(data.calibration.root / file, 0) for file in (first, second)])
    with pytest.raises(DataError, match=f"2 of the calibration pictures are in {told}.*, too: {first}, {second}; "):
        workflow.quantize_run(bundle, replace(data, **{part: doubled}), tmp_path)


class Few:
    """Views that are counted and never read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def view(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("pictures", "asked", "models"),
    [
        (workflow.TEACHER_BELOW - 1, "auto", ["efficientnet-lite0", "lite"]),
        (workflow.TEACHER_BELOW, "auto", ["lite"]),
        (300, "none", ["lite"]),
    ],
)
def test_a_small_set_gets_a_teacher(
    pictures: int, asked: str, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Recipe] = []

    def remember(recipe: Recipe, folder: Path, **_: object) -> Trained:
        trained.append(recipe)
        return None  # type: ignore[return-value]

    monkeypatch.setattr(workflow.making, "train", remember)
    monkeypatch.setattr(workflow.making, "plan", lambda recipe, *_: recipe)
    recipe = workflow.photo_recipe(Path("photos"), teacher=asked)
    data = TrainingData(("cup", "plate"), Few(pictures), ())
    workflow.train_with_teacher(recipe, data, tmp_path, minutes=1, resume=False, progress=False, say=lambda _: None)
    assert [r.model for r in trained] == models
    assert trained[-1].teacher == (str(tmp_path / "teacher") if len(models) == 2 else "none")
