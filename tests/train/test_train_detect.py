"""Training of detectors: it learns, its figures are the edge's, it is taught by another detector and where to look."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeattn.datasets.cards import Cards, CardSample
from edgeattn.errors import DataError, NameNotFoundError, SpecError
from edgeattn.nn import build_model
from edgeattn.nn.detector import Answer, Detector
from edgeattn.train import Recipe, TrainingData, load_run, train
from edgeattn.train.boxes import Boxes, where_boxes
from edgeattn.train.distill import freeze
from edgeattn.train.loader import View
from edgeattn.train.objective import Objective
from edgeattn.train.runs import build, save_weights, start_from, write_recipe
from edgeattn.train.sources import CardPictures
from edgeattn.train.tasks import training_task
from edgeattn.train.tasks.base import Mixed
from edgeattn.train.tasks.detect import Detect
from edgeattn.train.teachers import open_teacher

SIDE = 64
RECIPE = Recipe(
    "none", task="detect", imgsz=SIDE, attention="spatial", epochs=1, batch_size=8, workers=0, lr=0.08, warmup=0.05
)
LABELS = ("zero", "one", "two")


class Few:
    """The same few cards again and again."""

    def __init__(self, pictures: CardPictures, count: int) -> None:
        self.pictures, self.count = pictures, count

    def __len__(self) -> int:
        return self.count

    def view(self, index: int, rng: np.random.Generator) -> View:
        picture, card = self.pictures[index % len(self.pictures)]
        boxes = Boxes(card.boxes, card.labels)
        return View(picture, boxes, where_boxes(boxes.boxes, RECIPE.input))


@pytest.fixture(scope="module")
def cards() -> CardPictures:
    return CardPictures(Cards("train", size=SIDE), 3, "detect")


def batch(cards: CardPictures) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two pictures, the second without boxes."""
    torch.manual_seed(0)
    _, card = cards[1]
    nothing = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    target = Detect().stack([Boxes(card.boxes, card.labels), nothing])
    return torch.randn(2, 3, SIDE, SIDE), target, torch.rand(2, SIDE // 4, SIDE // 4)


def test_it_learns_a_few_pictures_by_heart_and_finds_them_without_suppression(
    cards: CardPictures, tmp_path: Path
) -> None:
    data = TrainingData(LABELS, Few(cards, 8 * 60), cards)
    trained = train(replace(RECIPE, attention="none", lr=0.04), tmp_path / "run", data=data, progress=False)
    assert trained.metrics["validation_map50"] >= 0.9
    assert trained.metrics["validation_map"] >= 0.5
    again = load_run(tmp_path / "run")
    x = torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        assert torch.allclose(again.model(x), trained.model(x), atol=1e-4)


def test_truths_are_stacked_with_padding(cards: CardPictures) -> None:
    _, target, _ = batch(cards)
    assert target.shape == (2, 1, 5)
    assert target[0, 0].tolist() == pytest.approx([*cards[1][1].box, 1])
    assert target[1, 0, 4] == -1


def test_mixed_pictures_show_the_boxes_of_both(cards: CardPictures) -> None:
    x, target, where = batch(cards)
    task = training_task("detect")
    rng = np.random.default_rng(0)
    assert task.mix(Mixed(x, target, where), 3, 0.0, rng).target is target
    mixed = task.mix(Mixed(x, target, where), 3, 1.0, rng)
    assert mixed.target[0].tolist() == mixed.target[1].flip(0).tolist()
    assert sorted(mixed.target[0, :, 4].tolist()) == [-1, 1]
    share = ((mixed.pictures[0] - x[1]) / (x[0] - x[1])).median()
    assert 0.3 < share < 0.7
    assert torch.equal(mixed.where[0], where.amax(0))


def test_every_term_teaches_and_a_batch_without_boxes_teaches_the_background(cards: CardPictures) -> None:
    x, target, _ = batch(cards)
    task, model = training_task("detect"), Detector(3, imgsz=SIDE).train()
    terms = task.loss(model(x), target, 0.0)
    assert tuple(terms) == task.terms
    assert all(term > 0 for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    heads = ("head.one.edges.", "head.many.edges.")  # of a level on which no place learns a box, they learn nothing
    assert all(name.startswith(heads) for name in silent)
    assert all(any(n.startswith(head) and n not in silent for n, _ in model.named_parameters()) for head in heads)
    empty = task.loss(model(x[1:].repeat(2, 1, 1, 1)), target[1:].repeat(2, 1, 1), 0.0)
    assert {name for name, term in empty.items() if term > 0} == {"class_many", "class_one"}


def test_a_folded_net_learns_on_by_the_head_that_is_left(cards: CardPictures) -> None:
    """As quantization-aware training does."""
    x, target, _ = batch(cards)
    model = Detector(3, imgsz=SIDE).deployed().train()
    terms = training_task("detect").loss(model(x), target, 0.0)
    assert list(terms) == ["class_one", "box_one"]
    torch.stack(list(terms.values())).sum().backward()
    assert model.get_parameter("backbone.stem.0.weight").grad.abs().sum() > 0


def test_the_loss_falls_where_the_answer_nears_the_truth(cards: CardPictures) -> None:
    """An answer made by hand: the place in the middle of the box says the box, and is as sure as it is told."""
    target = torch.tensor([[[16.0, 16.0, 48.0, 48.0, 1.0]]])
    model = Detector(3, imgsz=SIDE).train()
    answer = model(torch.randn(2, 3, SIDE, SIDE))
    off = (answer.places - 32).abs().amax(0)
    best = int(off.argmin())
    logits, edges = torch.full_like(answer.one.logits[:1], -9.0), torch.zeros_like(answer.one.edges[:1])
    reach = torch.stack([answer.places[0] - 16, answer.places[1] - 16, 48 - answer.places[0], 48 - answer.places[1]])
    edges[0] = (reach.clamp_min(1) / answer.strides).log()
    logits[0, 1, best] = 9.0
    made = Answer(answer.one._replace(logits=logits, edges=edges), None, answer.places, answer.strides)
    right = Detect().loss(made, target, 0.0)
    assert right["box_one"] == pytest.approx(0, abs=1e-4)
    assert right["class_one"] < 0.02
    wrong = Detect().loss(made._replace(one=made.one._replace(edges=edges + 0.5)), target, 0.0)
    assert wrong["box_one"] > 1.0


class Told(torch.nn.Module):
    """A net that says at one place what is asked of it."""

    def __init__(self, boxes: list[list[float]]) -> None:
        super().__init__()
        self.answer = torch.nn.Parameter(torch.tensor(boxes).T[None], requires_grad=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.answer.expand(len(x_BCHW), -1, -1)


def test_figures_are_of_the_boxes_that_the_edge_decodes() -> None:
    card = CardSample(np.full((100, 200, 3), 90, np.uint8), 1, (20.0, 10.0, 120.0, 90.0), np.zeros((100, 200), bool))
    task = training_task("detect")
    # letterboxed to 64: a scale of 0.32, bars of 16 above and below
    right = [0.32 * 70, 0.32 * 50 + 16, 0.32 * 100, 0.32 * 80]
    pictures = [(card.picture, card)]
    assert task.figures(Told([[*right, 0.1, 0.8, 0.1]]), pictures, RECIPE, LABELS) == {"map50": 1.0, "map": 1.0}
    shorter = [*right[:2], right[2], 0.75 * right[3]]
    found = task.figures(Told([[*shorter, 0.1, 0.8, 0.1]]), pictures, RECIPE, LABELS)
    assert found["map50"] == 1.0
    assert 0.4 < found["map"] < 0.7
    assert task.figures(Told([[*right, 0.8, 0.1, 0.1]]), pictures, RECIPE, LABELS)["map50"] == 0.0
    assert all(math.isnan(value) for value in task.figures(Told([[*right, 0, 0, 0]]), [], RECIPE, LABELS).values())


@pytest.mark.parametrize("method", ["cwd", "mgd", "dist", "cwd+maps"])
def test_a_detector_teaches_another(cards: CardPictures, method: str) -> None:
    x, target, where = batch(cards)
    torch.manual_seed(0)
    teacher = freeze(Detector(3, size="nano", attention="spatial", imgsz=SIDE))
    model = Detector(3, attention="spatial", imgsz=SIDE)
    made = Objective(replace(RECIPE, distill=method), model, teacher).train()
    terms = made(x, target, where, progress=0.5)
    names = method.split("+")
    assert list(terms) == [*training_task("detect").terms, *names]
    assert all(torch.isfinite(term) for term in terms.values())
    torch.stack([terms[name] for name in names]).sum().backward()
    narrow = model.head.neck.narrow[0]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in narrow.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("method", ["dist", "kd", "dkd"])
def test_a_batch_without_boxes_teaches_no_answers(cards: CardPictures, method: str) -> None:
    x, target, where = batch(cards)
    teacher = freeze(Detector(3, imgsz=SIDE))
    made = Objective(replace(RECIPE, distill=method), Detector(3, imgsz=SIDE), teacher).train()
    terms = made(x, torch.full_like(target, -1), where, progress=0.5)
    assert terms[method] == 0
    torch.stack(list(terms.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in made.model.parameters() if p.grad is not None)


def test_by_features_a_classifier_teaches_a_detector(cards: CardPictures) -> None:
    """Their answers could not be compared."""
    x, target, where = batch(cards)
    teacher = freeze(build_model("nano", 7, attention="none", imgsz=SIDE))
    made = Objective(replace(RECIPE, distill="cwd"), Detector(3, imgsz=SIDE), teacher).train()
    assert torch.isfinite(made(x, target, where, progress=0.5)["cwd"])


def test_several_detectors_are_no_teacher(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    recipe = replace(RECIPE, imgsz=32)
    write_recipe(recipe, run)
    save_weights(build(recipe, 3), run)
    (run / "labels.json").write_text(json.dumps(LABELS))
    (run / "metrics.jsonl").write_text("{}\n")
    assert isinstance(open_teacher(replace(recipe, teacher=str(run)), LABELS), Detector)
    with pytest.raises(SpecError, match="name one teacher"):
        open_teacher(replace(recipe, teacher=f"{run},{run}"), LABELS)
    pictures = replace(recipe, task="classify", teacher=str(run))
    with pytest.raises(
        DataError, match=r"has learnt to detect, and its answers are to teach to classify; take another"
    ):
        open_teacher(pictures, LABELS)
    assert isinstance(open_teacher(replace(pictures, distill="cwd"), LABELS), Detector)


def test_answers_are_compared_where_the_true_boxes_are(cards: CardPictures) -> None:
    target = torch.tensor([[[40.0, 8.0, 56.0, 24.0, 1.0], [0, 0, 0, 0, -1]]])
    model = Detector(3, imgsz=SIDE)
    x = torch.randn(1, 3, SIDE, SIDE)
    told = model.eval()(x)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, SIDE, SIDE))
    own = model.train()(torch.cat([x, x]))
    own = Answer(*(type(part)(*(v[:1] for v in part)) for part in own[:2]), *own[2:])
    compared = Detect().compared(own, told, target)
    # A place of each level, of both heads, for the one true box; none for the padding.
    assert compared.label.tolist() == [2] * 3 * 2
    assert compared.own.shape == compared.told.shape == (6, 4)
    assert (compared.own[:, 0] == 0).all()
    assert (compared.told[:, 0] == 0).all()
    place = 2 * 8 + 6  # the finest level's in row 2 and column 6 holds (48, 16)
    finest = (own.places - torch.tensor([[48.0], [16.0]])).abs().amax(0)[:64]
    assert finest[place] == finest.min()
    at = int(finest.argmin())
    assert torch.equal(compared.own[0, 1:], own.many.logits[0, :, at])
    assert torch.equal(compared.own[3, 1:], own.one.logits[0, :, at])
    assert torch.allclose(compared.told[0, 1:], told[0, 4:, at].logit(), atol=1e-3)
    with pytest.raises(DataError, match="same imgsz"):
        Detect().compared(own, told[:, :, 1:], target)


def test_attention_is_taught_where_the_boxes_are(cards: CardPictures) -> None:
    """In the neck too, which has slots of its own."""
    recipe = replace(RECIPE, supervise="kl")
    torch.manual_seed(0)
    model = Detector(3, attention="spatial", imgsz=SIDE)
    made = Objective(recipe, model, None).train()
    assert [path for path in made.blocks if path.startswith("head.neck.")]
    views = [Few(cards, 3).view(i, np.random.default_rng(0)) for i in range(3)]
    x = torch.from_numpy(np.stack([v.picture for v in views])).permute(0, 3, 1, 2).float() / 128 - 1
    where = torch.from_numpy(np.stack([v.where for v in views]))[:, None]
    where = torch.nn.functional.avg_pool2d(where, 4)[:, 0]
    target = Detect().stack([v.truth for v in views])
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    falls = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = made(x, target, where, progress=0.1)["looking_kl"]
        loss.backward()
        optimizer.step()
        falls.append(loss.item())
    assert falls[-1] < 0.95 * falls[0]


def test_a_backbone_is_learnt_elsewhere_and_its_head_begins_anew() -> None:
    torch.manual_seed(0)
    recipe = replace(RECIPE, attention="coord")
    model = build(recipe, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_from("zoo", model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("backbone.") for name in changed)


@pytest.mark.parametrize("name", ["picco", "timm:resnet18"])
def test_a_wrong_model_is_named(name: str) -> None:
    with pytest.raises(NameNotFoundError, match="pico"):
        training_task("detect").build(replace(RECIPE, model=name), 3)
