"""What `make` chooses by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeattn import workflow
from edgeattn.nn.attention import ATTENTIONS
from edgeattn.spec import Task
from edgeattn.train import Recipe, Trained, TrainingData
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
