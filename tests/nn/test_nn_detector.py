"""The detector: its size, its two heads, its graph, and its answers through both engines."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeattn.datasets.cards import Cards
from edgeattn.deploy.export import export
from edgeattn.deploy.lint import lint
from edgeattn.engines import open_engine
from edgeattn.imaging import prepare
from edgeattn.nn.cost import cost
from edgeattn.nn.detector import BINS, LEVELS, Answer, Detector, places
from edgeattn.spec import InputSpec
from edgeattn.tasks import Detections, decode


def warmed(model: Detector, imgsz: int) -> Detector:
    """Its BatchNorm has seen something, and its answers differ from place to place."""
    torch.manual_seed(1)
    for branches in (model.head.one.classes, model.head.one.edges):
        for branch in branches:
            nn.init.normal_(branch[-1].weight, std=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(torch.randn(8, 3, imgsz, imgsz))
    return model.eval()


def test_a_pico_is_small_enough() -> None:
    model = Detector(80, attention="coord", imgsz=416)
    assert cost(model, 416).parameters <= 1_500_000


@pytest.mark.parametrize(("size", "imgsz"), [("pico", 96), ("pico", 100), ("pico", 32), ("resnet20", 32), ("lite", 64)])
def test_every_place_proposes_in_training_by_two_heads_and_then_by_one(size: str, imgsz: int) -> None:
    model = Detector(3, size=size, attention="se", imgsz=imgsz).train()
    x = torch.randn(2, 3, imgsz, imgsz)
    answer = model(x)
    assert isinstance(answer, Answer)
    assert answer.many is not None
    steps = model.head.neck.strides
    count = sum(math.ceil(imgsz / step) ** 2 for step in steps)
    assert answer.one.logits.shape == answer.many.logits.shape == (2, 3, count)
    assert (answer.one.edges.shape, answer.many.edges.shape) == ((2, 4, count), (2, 4 * BINS, count))
    assert answer.places.shape == (2, count)
    assert len(steps) == LEVELS
    assert model.eval()(x).shape == (2, 7, count)


def test_places_are_the_middles_of_their_cells() -> None:
    middles, strides = places([(2, 3), (1, 1)], (8, 16))
    assert middles.T.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8]]
    assert strides.tolist() == [8] * 6 + [16]


def test_the_features_learn_from_the_one_to_many_head_alone() -> None:
    model = Detector(3, imgsz=64).train()
    answer = model(torch.randn(2, 3, 64, 64))
    (answer.one.logits.sum() + answer.one.edges.sum()).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if name.startswith("head.one.")}
    (answer.many.logits.sum() + answer.many.edges.sum()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_folding_drops_the_second_head_and_changes_no_answer() -> None:
    model = warmed(Detector(3, attention="coord", imgsz=64), 64)
    twin, x = model.deployed(), torch.randn(2, 3, 64, 64)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    assert twin.head.many is None  # type: ignore[union-attr]
    with torch.no_grad():
        (given, maps), wanted = twin.attend(x), model(x)
    assert (given - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    necks = [path for path in maps if path.startswith("head.")]
    assert len(necks) == 4
    assert set(necks) <= {path for path, _ in twin.named_modules()}


def test_watching_gives_the_necks_features_beside_the_same_answer() -> None:
    model = warmed(Detector(3, attention="eca", imgsz=64), 64)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        answer, maps, features = model.watch(x)
        plain, none, _ = model.watch(x, maps=False)
        assert torch.equal(answer, model(x))
    assert torch.equal(answer, plain)
    assert maps.keys() == model.attend(x)[1].keys()
    assert not none
    assert features.shape == (2, 3 * 48, 4, 4)


def test_both_engines_answer_as_torch_does_from_a_graph_that_npus_take(tmp_path: Path) -> None:
    model = warmed(Detector(3, attention="eca", imgsz=64), 64)
    cards = [Cards("validation", size=80).sample(i).picture for i in range(4)]
    seen = InputSpec(64, 64, fit="letterbox")
    bundle = export(model, tmp_path / "it", labels=("a", "b", "c"), pictures=cards, task="detect", input=seen)
    held = np.concatenate([prepare(card, seen) for card in cards])
    with torch.no_grad():
        wanted = model((torch.from_numpy(held).permute(0, 3, 1, 2).float() - 128) / 128).numpy()
    assert np.ptp(wanted[:, 4:]) > 0.2  # scores that differ, so that equality says something
    for name in ("onnxruntime", "openvino"):
        engine = open_engine(bundle, engine=name, precision="float")
        for i in range(len(cards)):
            given = engine.infer(held[i : i + 1])[bundle.spec.output]
            assert given[0] == pytest.approx(wanted[i], rel=1e-3, abs=1e-3)
        engine.close()
    kinds = {node.op_type for node in onnx.load(bundle.file(bundle.artefacts[0])).graph.node}
    assert not kinds & {"NonMaxSuppression", "TopK", "Gather", "GatherElements", "ScatterND", "Softmax", "NonZero"}
    assert {finding.rule for finding in lint(bundle)} <= {"opset 19 at most"}
    assert bundle.spec.thresholds is not None
    assert bundle.spec.thresholds.iou == 1.0
    found = decode({"boxes": wanted[:1]}, bundle.spec)
    assert isinstance(found, Detections)
    assert len(found.boxes) == int((wanted[0, 4:].max(0) > 0.25).sum()) > 0  # none is suppressed
