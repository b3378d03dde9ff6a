"""Training of segmenters: losses by hand, views whose classes lie where the picture's do, a net that learns, exports and runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from edgeattn._cv2 import cv2
from edgeattn.cli import main
from edgeattn.datasets.annotated import IGNORE
from edgeattn.datasets.cards import Cards
from edgeattn.datasets.masks import read_masks
from edgeattn.deploy.lint import lint
from edgeattn.engines import open_engine
from edgeattn.errors import DataError, SpecError
from edgeattn.evaluation.segment import Segmentation
from edgeattn.imaging import prepare
from edgeattn.tasks import FIGURES, Regions, decode
from edgeattn.train import Recipe, Trained, TrainingData, losses, train
from edgeattn.train.augment import NO_AUGMENT, Augment
from edgeattn.train.classmaps import MapViews
from edgeattn.train.distill import METHODS
from edgeattn.train.loader import PictureFiles
from edgeattn.train.loop import figure
from edgeattn.train.sources import CardPictures, CardViews, open_data
from edgeattn.train.tasks import training_task
from edgeattn.train.tasks.base import Mixed
from edgeattn.train.tasks.segment import pixels
from edgeattn.workflow import export_run

LABELS = ("background", "red", "green")
COLOURS = np.array([[110, 120, 130], [30, 30, 230], [30, 220, 30]], np.uint8)
"""BGR of each class."""
TASK = training_task("segment")


def scene(rng: np.random.Generator, height: int = 54, width: int = 72) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A red disc and a green rectangle on noisy grey, and the classes of the pixels."""
    classes = np.zeros((height, width), np.uint8)
    cv2.circle(
        classes, (int(rng.integers(14, 30)), int(rng.integers(14, height - 14))), int(rng.integers(7, 12)), 1, -1
    )
    x, y = int(rng.integers(40, 50)), int(rng.integers(4, 20))
    cv2.rectangle(classes, (x, y), (x + int(rng.integers(10, 18)), y + int(rng.integers(12, 28))), 2, -1)
    noise = rng.integers(-20, 20, (height, width, 3))
    return np.clip(COLOURS[classes] + noise, 0, 255).astype(np.uint8), classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with masks in three parts; a strip of each mask does not count."""
    root, rng = tmp_path_factory.mktemp("masks"), np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4), ("test", 2)):
        for name in (part, f"{part}annot"):
            (root / name).mkdir()
        for i in range(count):
            picture, classes = scene(rng)
            classes[:, -2:] = 9
            cv2.imwrite(str(root / part / f"{i}.png"), picture)
            cv2.imwrite(str(root / f"{part}annot" / f"{i}.png"), classes)
    names = "".join(f"{i},{name}\n" for i, name in enumerate(LABELS))
    (root / "classes.csv").write_text(f"id,name\n{names}9,unlabelled\n")
    return root


def small(folder: Path, **changes: Any) -> Recipe:
    recipe = Recipe(str(folder), task="segment", attention="se", imgsz=64, height=48, epochs=2, batch_size=4, workers=0)
    return replace(recipe, **changes)


@pytest.fixture(scope="module")
def data(folder: Path) -> TrainingData:
    """Four pictures, to be learnt by heart."""
    records = [one for one in read_masks(folder).pictures if one.part == "train"][:4]
    return TrainingData(LABELS, MapViews(records, small(folder).input, NO_AUGMENT), PictureFiles(records))


@pytest.fixture(scope="module")
def run(folder: Path, data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    recipe = small(folder, epochs=40, lr=0.1, ema=0.0, attention="spatial", augment=NO_AUGMENT, label_smoothing=0.0)
    return train(recipe, tmp_path_factory.mktemp("runs") / "run", data=data, progress=False)


def test_lovasz_is_the_loss_of_jaccards_index_where_answers_are_sure() -> None:
    """At probabilities of 0 and 1 it is 1 - IoU, mean over the classes that occur."""
    label = torch.tensor([0, 0, 0, 1, 1, 1])
    answer = torch.tensor([0, 0, 1, 1, 1, 0])
    logits = 200.0 * torch.nn.functional.one_hot(answer, 3).float()
    assert losses.lovasz_softmax(logits, label).item() == pytest.approx(1 - (2 / 4 + 2 / 4) / 2, abs=1e-5)
    assert losses.lovasz_softmax(200.0 * torch.nn.functional.one_hot(label, 3).float(), label).item() == pytest.approx(
        0
    )


def test_lovasz_of_errors_in_between_is_their_weighted_sum() -> None:
    """By hand: of class 1 the errors are .8 (its own pixel) and .4; 1 - IoU grows to 1, then by 0."""
    p = torch.tensor([[0.6, 0.4], [0.8, 0.2]])
    label = torch.tensor([0, 1])
    # class 1: sorted .8 (positive), .4 (negative): jaccard 1, 1. class 0: .8 (negative) 1 - 1/2, .4 (positive) 1 - 0/2
    wanted = (0.8 * 1.0 + 0.4 * 0.0 + 0.8 * 0.5 + 0.4 * 0.5) / 2
    assert losses.lovasz_softmax(p.log(), label).item() == pytest.approx(wanted, abs=1e-6)


def test_lovasz_has_gradients_that_mend() -> None:
    logits = torch.zeros(8, 3, requires_grad=True)
    label = torch.arange(8) % 3
    for _ in range(60):
        (slope,) = torch.autograd.grad(losses.lovasz_softmax(logits, label), logits)
        logits = (logits - 20.0 * slope).detach().requires_grad_(True)
    assert (logits.argmax(1) == label).all()


def test_rare_classes_weigh_more() -> None:
    weight = losses.enet_weights(torch.tensor([0] * 9 + [1]), 3)
    assert weight.tolist() == pytest.approx((1 / np.log([1.92, 1.12, 1.02])).tolist(), rel=1e-4)


@pytest.mark.parametrize("size", [(48, 64), (45, 61), (12, 16)])
def test_the_answer_is_read_at_the_pixels_of_the_input(size: tuple[int, int]) -> None:
    answer = torch.randn(2, 3, 12, 16)
    target = torch.randint(0, 3, (2, *size), dtype=torch.uint8)
    target[:, :3] = IGNORE
    rows, labels = pixels(answer, target)
    upscaled = interpolate(answer, size, mode="bilinear").permute(0, 2, 3, 1)
    assert torch.allclose(rows, upscaled[target != IGNORE], atol=1e-5)
    assert torch.equal(labels, target[target != IGNORE].long())


def test_of_many_pixels_some_are_read_everywhere() -> None:
    rows, labels = pixels(torch.randn(4, 3, 90, 120), torch.ones(4, 360, 480, dtype=torch.uint8))
    assert 20_000 < len(rows) == len(labels) <= 1 << 15


def test_the_loss_is_cross_entropy_and_lovasz_and_bears_a_batch_without_classes() -> None:
    answer, target = torch.randn(1, 3, 4, 4, requires_grad=True), torch.randint(0, 3, (1, 4, 4), dtype=torch.uint8)
    terms = TASK.loss(answer, target, 0.0)
    rows, labels = answer[0].flatten(1).T, target.flatten().long()
    weight = losses.enet_weights(labels, 3).sqrt()
    wanted = -(weight[labels] * rows.log_softmax(1)[range(16), labels]).sum() / weight[labels].sum()
    assert terms["cross_entropy"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert terms.keys() == set(TASK.terms)
    empty = TASK.loss(answer, torch.full_like(target, IGNORE), 0.0)
    torch.stack(list(empty.values())).sum().backward()
    assert [value.item() for value in empty.values()] == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(4))
def test_classes_lie_on_a_view_where_the_shapes_do(seed: int, folder: Path) -> None:
    """Turned, zoomed, mirrored and coloured, a pixel's class is still that of its colour."""
    records = [one for one in read_masks(folder).pictures if one.part == "train"]
    augment = Augment(brightness=0.1, colour=0.0, erase=0.0, blur=0.0)
    shown = MapViews(records, small(folder).input, augment, foreground=True).view(seed, np.random.default_rng(seed))
    assert shown.picture.shape == (48, 64, 3)
    assert shown.truth.shape == (48, 64)
    assert shown.truth.dtype == np.uint8
    clear = shown.picture.astype(int) - shown.picture.mean(2, keepdims=True)
    taken = np.where(clear[..., 2] > 45, 1, np.where(clear[..., 1] > 45, 2, 0))
    inner = cv2.erode((shown.truth != IGNORE).astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    patch, square = taken.astype(np.uint8), np.ones((3, 3), np.uint8)
    inner &= cv2.dilate(patch, square) == cv2.erode(patch, square)  # a seam of a pixel may be either's
    assert inner.sum() > 800
    assert (taken[inner] == shown.truth[inner]).all()
    assert (taken[inner] == np.roll(shown.truth, 2, axis=1)[inner]).mean() < 0.995, "two pixels off would show"
    assert {1, 2} <= set(np.unique(shown.truth))
    assert shown.where is not None
    np.testing.assert_array_equal(shown.where > 0, (shown.truth == 1) | (shown.truth == 2))


def test_an_unchanged_view_holds_the_mask_and_bars_do_not_count(folder: Path) -> None:
    (record,) = (one for one in read_masks(folder).pictures if one.path == folder / "train" / "0.png")
    spec = replace(small(folder).input, height=72, width=72)
    shown = MapViews([record], spec, NO_AUGMENT).view(0, np.random.default_rng(0))
    np.testing.assert_array_equal(shown.truth[9:63], record.class_map())
    assert (shown.truth[:9] == IGNORE).all()
    assert (shown.truth[63:] == IGNORE).all()
    with pytest.raises(DataError, match=r"0.png has no mask"):
        replace(record, masks=None).class_map()


def test_batches_are_mixed_by_rectangles() -> None:
    pictures = torch.stack([torch.zeros(3, 48, 64), torch.ones(3, 48, 64)])
    target = torch.stack([torch.zeros(48, 64), torch.ones(48, 64)]).to(torch.uint8)
    batch = Mixed(pictures, target, torch.zeros(2, 0, 0))
    assert TASK.mix(batch, 3, 0.0, np.random.default_rng(0)) is batch
    mixed = TASK.mix(batch, 3, 1.0, np.random.default_rng(0))
    assert torch.equal(mixed.pictures[:, 0], mixed.target.float())
    assert 0.05 < mixed.target[0].float().mean() < 0.55


def test_a_folder_is_read_in_its_parts(folder: Path) -> None:
    read = open_data(small(folder), folder)
    assert (read.labels, len(read.train), len(read.validation), len(read.test)) == (LABELS, 12, 4, 2)


def test_four_pictures_are_learnt_by_heart_and_judged_at_their_own_size(run: Trained, data: TrainingData) -> None:
    figures = TASK.figures(run.model, data.validation, run.recipe, LABELS)
    assert figures["miou"] > 0.9
    assert figures["miou"] == pytest.approx(run.metrics["validation_miou"])
    assert figure(run.model, data.validation, run.recipe, LABELS) == figures[FIGURES["segment"].key]
    found = Segmentation(LABELS)
    for picture, record in data.validation:
        x = torch.from_numpy(prepare(picture, run.recipe.input).astype(np.float32)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            answer = interpolate(run.model((x - 128) / 128), (48, 64), mode="bilinear")[0].argmax(0)
        own = cv2.resize(answer.numpy().astype(np.uint8), (72, 54), interpolation=cv2.INTER_NEAREST_EXACT)
        found.add(record.class_map(), own)
    assert found.overlap().miou == pytest.approx(figures["miou"], abs=0.005)
    assert np.isnan(TASK.figures(run.model, [], run.recipe, LABELS)["miou"])


@pytest.mark.parametrize("method", ["kd", "dkd", "dist", "cwd", "mgd", "maps"])
def test_a_segmenter_teaches_another(method: str, run: Trained, folder: Path, tmp_path: Path) -> None:
    recipe = small(folder, teacher=str(run.folder), distill=method, attention="coord", epochs=1)
    metrics = train(recipe, tmp_path / "run", progress=False).metrics
    assert metrics[method] > 0
    assert metrics["loss"] == pytest.approx(metrics["cross_entropy"] + metrics["lovasz"] + metrics[method], rel=1e-4)
    assert method in METHODS


def test_attention_is_told_where_the_foreground_is(folder: Path, tmp_path: Path) -> None:
    trained = train(small(folder, attention="spatial", supervise="ce"), tmp_path / "run", progress=False)
    assert trained.metrics["looking_ce"] > 0
    assert trained.metrics["told_where"] == 1.0


def test_without_a_background_attention_cannot_be_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for path in folder.iterdir():
        if path.is_dir():
            (tmp_path / "data" / path.name).symlink_to(path)
    (tmp_path / "data" / "classes.csv").write_text("id,name\n0,Sky\n1,red\n2,green\n9,void\n")
    with pytest.raises(SpecError, match=r"class 0 of .* is Sky; name class 0 background"):
        open_data(small(tmp_path / "data", supervise="ce"), tmp_path)


def test_one_class_is_refused_before_it_is_trained(folder: Path, tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(12):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), cv2.imread(str(folder / "train" / f"{i}.png")))
        cv2.imwrite(str(tmp_path / "masks" / f"{i}.png"), np.zeros((54, 72), np.uint8))
    (tmp_path / "classes.txt").write_text("road\n")
    with pytest.raises(DataError, match="has no class but road; a segmenter tells two apart at least"):
        open_data(small(tmp_path), tmp_path / "scratch")


def test_exported_it_answers_as_torch_and_runs_on_a_folder(
    run: Trained, data: TrainingData, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = export_run(run, data, tmp_path / "m.edgeattn")
    assert (bundle.spec.task, bundle.spec.labels, bundle.spec.input.shape) == ("segment", LABELS, (1, 48, 64, 3))
    assert [m.block for m in bundle.spec.maps if m.block.startswith("head")] == [f"head.levels.{i}" for i in (2, 1, 0)]
    assert all("opset" in finding.rule for finding in lint(bundle)), "nothing that NPUs dislike but the file's opset"
    picture, record = data.validation[0]
    inputs = prepare(picture, bundle.spec.input)
    x = (torch.from_numpy(inputs.astype(np.float32)).permute(0, 3, 1, 2) - 128) / 128
    with torch.inference_mode():
        wanted = run.model(x).numpy()
    for name in ("onnxruntime", "openvino"):
        engine = open_engine(bundle, engine=name, precision="float")
        given = engine.infer(inputs)
        engine.close()
        np.testing.assert_allclose(given["logits"], wanted, atol=1e-2 * np.ptp(wanted))
        seen = decode(given, bundle.spec, picture.shape[:2])
        assert isinstance(seen, Regions)
        truth = record.class_map()
        assert (seen.class_map == truth)[truth != IGNORE].mean() > 0.9
    lines = tmp_path / "lines.jsonl"
    words = ("run", bundle.path, "--source", folder / "val", "--engine", "openvino", "--precision", "float")
    monkeypatch.setattr("sys.argv", ["edgeattn", *map(str, words), "--sink", "jsonl", "--out", str(lines)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    told = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(told) == 4
    assert all({each["label"] for each in line["regions"]} <= {"red", "green"} for line in told)


def test_cards_are_segmented_too() -> None:
    recipe = Recipe("cards", task="segment", imgsz=48)
    shown = CardViews(Cards("train", size=48), 16, "segment", masks=True).view(0, np.random.default_rng(0))
    assert shown.truth.shape == (48, 48)
    assert set(np.unique(shown.truth)) == {0, shown.truth.max()}
    assert shown.where is not None
    np.testing.assert_array_equal(shown.where > 0, shown.truth > 0)
    held = CardPictures(Cards("validation", size=48), 4, "segment")
    figures = TASK.figures(TASK.build(recipe, 11), held, recipe, Cards.map_names)
    assert 0 <= figures["miou"] < 0.3, "nothing is learnt yet"
