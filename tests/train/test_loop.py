"""The loop: resume after a kill equals an uninterrupted run bit for bit; no skew to the edge; refusals."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import discs
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters

from edgeattn.errors import DataError, EdgeAttnError, NameNotFoundError, SpecError
from edgeattn.imaging import prepare
from edgeattn.spec import InputSpec
from edgeattn.train import Recipe, TrainingData, load_run, train
from edgeattn.train.augment import Augment, shrink
from edgeattn.train.loader import FolderViews, Loader, PictureFiles, evaluation_batches, normalise
from edgeattn.train.machine import compile_steps, fastest_workers, random_state, set_random_state
from edgeattn.train.recipe import override
from edgeattn.train.runs import weights_attributions
from edgeattn.train.sources import open_data


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures a class: a coloured disc on noise."""
    return discs.write(tmp_path_factory.mktemp("photos"), 20)


def small(photos: Path, **changes: object) -> Recipe:
    return replace(Recipe(str(photos), attention="se", imgsz=32, epochs=4, batch_size=16, workers=0), **changes)  # type: ignore[arg-type]


def test_a_run_learns_and_is_kept_whole(photos: Path, tmp_path: Path) -> None:
    recipe = small(photos, epochs=30, lr=0.01)
    trained = train(recipe, tmp_path / "run", progress=False)
    assert trained.labels == ("blue", "green", "red")
    assert trained.metrics["validation_top1"] >= 0.8
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {
        "recipe.json",
        "environment.json",
        "metrics.jsonl",
        "model.safetensors",
    }
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(30))
    assert lines[-1]["cross_entropy"] < lines[0]["cross_entropy"]
    again = load_run(tmp_path / "run")
    assert again.recipe == recipe
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(again.model(x), trained.model(x), atol=1e-6)


SCRIPT = """
import sys, json
from edgeattn.train import Recipe, train
from edgeattn.train import loop
from edgeattn.spec import from_json
loop.CHECKPOINT_EVERY_S = 0.0
train(from_json(Recipe, json.loads(sys.argv[1])), sys.argv[2], resume=True, progress=False)
"""


TIMING = {"data_wait": None, "seconds": None}


def learned(run: Path) -> list[dict[str, float]]:
    """The metrics of a run, but for those that are time."""
    return [json.loads(line) | TIMING for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(photos: Path, tmp_path: Path) -> None:
    from edgeattn.spec import to_json

    recipe = small(photos, epochs=40, dropout=0.2, mixup=0.5)
    whole = train(recipe, tmp_path / "whole", progress=False)
    command = [sys.executable, "-c", SCRIPT, json.dumps(to_json(recipe)), str(tmp_path / "cut")]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    child = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "cut" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    seen = metrics.read_text().count("\n")
    assert 3 <= seen < 40
    resumed = train(recipe, tmp_path / "cut", resume=True, progress=False)
    ours, theirs = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (learned(tmp_path / run) for run in ("whole", "cut"))
    assert ours == theirs
    assert resumed.metrics | TIMING == whole.metrics | TIMING


def test_evaluation_sees_what_the_edge_sees(photos: Path) -> None:
    recipe = small(photos)
    data = open_data(recipe, photos)
    for imgsz in (32, 50):
        spec = InputSpec(imgsz, imgsz)
        batches = torch.cat(list(evaluation_batches(data.validation, spec, batch_size=4)))
        edge = np.concatenate([prepare(data.validation[i][0], spec) for i in range(len(data.validation))])
        assert batches.dtype == torch.uint8
        assert np.array_equal(batches.numpy(), edge)


def test_an_unchanged_view_is_the_edges_input(photos: Path) -> None:
    # Training's channel order and normalisation are the deployed ones: a view without augmentation equals `prepare`.
    data = open_data(small(photos), photos)
    still = Augment(
        rotate=0, scale=(1, 1), aspect=1, shift=0, flip=False, brightness=0, colour=0, blur=0, noise=0, erase=0
    )
    assert isinstance(data.train, FolderViews)
    spec = InputSpec(70, 70)  # the pictures' own height: cropped, not resized
    views = FolderViews(data.train.samples[:4], spec, still)
    ((batch, labels, *_),) = Loader(views, batch_size=4, seed=0, workers=0).epoch(0)
    by_label = sorted(zip(labels.tolist(), batch.numpy().tolist(), strict=True))
    expected = sorted(
        (s.label, prepare(p, spec)[0].tolist())
        for s, (p, _) in zip(views.samples, PictureFiles(views.samples), strict=True)
    )
    assert by_label == expected
    x = normalise(torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8))
    assert x.flatten().tolist() == [-1.0, 0.0, 127 / 128]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than the cores of this process
def test_views_depend_on_seed_epoch_and_index_alone(photos: Path) -> None:
    data = open_data(small(photos), photos)
    batches = {}
    for workers in (0, 2):
        loader = Loader(data.train, batch_size=8, seed=3, workers=workers)
        batches[workers] = [torch.cat([b.pictures for b in loader.epoch(e)]) for e in (0, 1)]
    assert torch.equal(batches[0][0], batches[2][0])
    assert torch.equal(batches[0][1], batches[2][1])
    assert not torch.equal(batches[0][0], batches[0][1])


def test_distilling_is_training_with_a_teacher(photos: Path, tmp_path: Path) -> None:
    train(small(photos, attention="none"), tmp_path / "teacher", progress=False)
    for method in ("kd", "dkd"):
        recipe = small(photos, teacher=str(tmp_path / "teacher"), distill=method)
        metrics = train(recipe, tmp_path / method, progress=False).metrics
        assert metrics[method] > 0
        assert metrics["loss"] == pytest.approx(metrics["cross_entropy"] + metrics[method], rel=1e-4)


def test_whose_weights_a_run_came_from_is_known_when_its_teacher_is_gone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(small(photos, model="efficientnet-lite0", attention="none", epochs=1), "teacher", progress=False)
    features = train(small(photos, epochs=1, teacher="teacher", distill="dist+mgd"), "student", progress=False)
    assert features.metrics["mgd"] > 0, "the pretrained teacher shows its features too"
    shutil.rmtree("teacher")
    monkeypatch.chdir("/")
    (told,) = weights_attributions(tmp_path / "student")
    assert (told["name"], told["licence"]) == ("EfficientNet-Lite0, ImageNet weights", "Apache-2.0")


def test_a_teacher_of_other_classes_is_refused(photos: Path, tmp_path: Path) -> None:
    train(small(photos, epochs=1), tmp_path / "teacher", progress=False)
    data = open_data(small(photos), tmp_path)
    other = TrainingData(("x", "y", "z"), data.train, data.validation)
    with pytest.raises(DataError, match=r"teacher.*knows.*blue"):
        train(small(photos, teacher=str(tmp_path / "teacher")), tmp_path / "run", data=other, progress=False)


def test_a_loss_that_is_no_number_stops_the_run(photos: Path, tmp_path: Path) -> None:
    recipe = small(photos, model=f"{__name__}:broken", epochs=2)
    with pytest.raises(
        EdgeAttnError,
        match=r"loss is no longer a number at step 0: cross_entropy \(cross_entropy nan\); there was no checkpoint yet; "
        r"train anew with a lower learning rate \(--set lr=0.002\)",
    ):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def broken(classes: int) -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, classes))
    torch.nn.init.constant_(model[2].weight, float("nan"))
    return model


class Brittle(torch.nn.Module):
    """A linear net whose answers, or their gradients, or whose running mean, is no number once, at a chosen step."""

    steps, at, what = 0, 0, ""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, classes)
        self.register_buffer("running", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.linear(x.mean((2, 3)))
        if not (self.training and torch.is_grad_enabled()):
            return answer
        Brittle.steps += 1
        if Brittle.steps != Brittle.at:
            return answer
        if self.what == "gradient":
            answer.register_hook(lambda slope: slope * math.nan)
        if self.what == "net":
            self.running.fill_(math.nan)
        return answer * math.nan if self.what == "loss" else answer


@pytest.mark.parametrize("what", ["loss", "gradient", "net"])
def test_the_last_good_checkpoint_is_kept_and_gone_on_from_at_a_lower_rate(
    what: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeattn.train.loop.CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(Brittle, "steps", 0)
    monkeypatch.setattr(Brittle, "at", 3)  # of two steps an epoch
    monkeypatch.setattr(Brittle, "what", what)
    recipe = small(photos, model=f"{__name__}:Brittle", attention="none", epochs=3, ema=0.0)
    said = f"{what} is no longer a number at step.*the last checkpoint stands; go on from it with --resume and a lower"
    with pytest.raises(EdgeAttnError, match=said):
        train(recipe, tmp_path / "run", progress=False)
    kept = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert kept["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in kept["objective"].values())
    assert not (tmp_path / "run" / "model.safetensors").exists()
    trained = train(replace(recipe, lr=0.002), tmp_path / "run", resume=True, progress=False)
    first, *others = (line["lr"] for line in learned(tmp_path / "run"))
    assert len(others) == 2
    assert max(others) < 0.5 * first
    assert all(torch.isfinite(value).all() for value in trained.model.state_dict().values())
    with pytest.raises(DataError, match=r"another recipe"):
        train(recipe, tmp_path / "run", resume=True, progress=False)


def test_a_last_epoch_that_breaks_the_net_saves_none(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Brittle, "steps", 0)
    monkeypatch.setattr(Brittle, "at", 2)
    monkeypatch.setattr(Brittle, "what", "net")
    recipe = small(photos, model=f"{__name__}:Brittle", attention="none", epochs=1)
    with pytest.raises(EdgeAttnError, match="the net is no longer a number at step 2: its running"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_starting_from_weights(photos: Path, tmp_path: Path) -> None:
    first = train(small(photos, epochs=2), tmp_path / "first", progress=False)
    second = train(small(photos, epochs=1, lr=1e-6, start=str(tmp_path / "first")), tmp_path / "second", progress=False)
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    assert torch.allclose(
        ours["backbone.stages.2.0.expand.0.weight"], theirs["backbone.stages.2.0.expand.0.weight"], atol=1e-4
    )
    with pytest.raises(DataError, match=r"fit \d+ of the model's"):
        train(
            small(photos, attention="none", model="nano", start=str(tmp_path / "first")),
            tmp_path / "third",
            progress=False,
        )
    with pytest.raises(DataError, match=r"no weights"):
        train(small(photos, start="nowhere"), tmp_path / "third", progress=False)


def test_resuming_another_recipe_is_refused(photos: Path, tmp_path: Path) -> None:
    train(small(photos, epochs=1), tmp_path / "run", progress=False)
    with pytest.raises(DataError, match=r"another recipe"):
        train(small(photos, epochs=2), tmp_path / "run", resume=True, progress=False)


def test_settings() -> None:
    recipe = override(Recipe("x"), ["epochs=3", "lr=0.1", "augment.flip=false", "attention=se"])
    assert (recipe.epochs, recipe.lr, recipe.augment.flip, recipe.attention) == (3, 0.1, False, "se")
    with pytest.raises(NameNotFoundError, match=r"'epoch'.*mean 'epochs'"):
        override(Recipe("x"), ["epoch=3"])
    with pytest.raises(SpecError, match=r"epochs must be of type int"):
        override(Recipe("x"), ["epochs=many"])
    with pytest.raises(SpecError, match=r"epochs=0 is out of range"):
        override(Recipe("x"), ["epochs=0"])
    with pytest.raises(SpecError, match=r"field=value"):
        override(Recipe("x"), ["epochs"])


def test_shrinking_keeps_detail_for_zooming_in() -> None:
    spec = InputSpec(32, 32)
    picture = np.zeros((400, 600, 3), np.uint8)
    assert shrink(picture, spec).shape == (48, 72, 3)
    assert shrink(picture[:40, :40], spec).shape == (40, 40, 3)


def test_the_official_cifar_binaries_are_trained_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows = [bytes([k % 2]) + rng.integers(0, 256, 3072).astype(np.uint8).tobytes() for k in range(20)]
        (tmp_path / name).write_bytes(b"".join(rows))
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    recipe = small(tmp_path, model="resnet20", epochs=1)
    trained = train(recipe, tmp_path / "run", progress=False)
    assert trained.labels == ("cat", "dog")
    data = open_data(recipe, tmp_path / "run")
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 20)
    assert data.calibration is not None


@pytest.mark.parametrize(
    ("views", "step", "fewer", "cores", "workers"),
    [
        (0.02, 0.36, 0.69, 2, 0),  # cheap pictures: a worker would take half of the speed
        (0.09, 0.17, 0.20, 2, 1),  # dear ones, and a second thread that hardly helps
        (0.80, 0.10, 0.11, 8, 4),  # a quick step: half of the cores make pictures
        (0.01, 0.50, 0.57, 8, 0),
    ],
)
def test_workers_are_taken_where_they_pay(views: float, step: float, fewer: float, cores: int, workers: int) -> None:
    assert fastest_workers(views, step, fewer, cores) == workers


def test_the_trial_leaves_no_trace(photos: Path, tmp_path: Path) -> None:
    recipe = small(photos, epochs=2, workers=-1)
    first = train(recipe, tmp_path / "auto", progress=False)
    assert first.recipe.workers >= 0
    assert load_run(tmp_path / "auto").recipe == first.recipe
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - first.recipe.workers))
    second = train(first.recipe, tmp_path / "told", progress=False)
    ours, theirs = (load_file(tmp_path / run / "model.safetensors") for run in ("auto", "told"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert second.recipe == first.recipe


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler's parts
def test_compiled_steps_are_the_same_steps() -> None:
    class Student(nn.Module):  # torch skips modules of its own
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))

        def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            return self.body(x_BCHW)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net = Student()
    own, x = copy.deepcopy(net), torch.randn(4, 3, 8, 8)
    counters.clear()
    compile_steps(net)
    for each in (own, net):
        each(x).square().sum().backward()
    assert counters["stats"]["unique_graphs"] == 1
    assert list(net.state_dict()) == list(own.state_dict()), "weights are kept under the same names"
    for (name, value), expected in zip(net.named_parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(value.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_compiling_without_a_compiler(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(EdgeAttnError, match="needs a C\\+\\+ compiler, and there is no no-such-compiler; install it"):
        train(small(photos, compile=True), tmp_path / "run", progress=False)
    with pytest.raises(SpecError, match="compile does not go with qat"):
        small(photos, compile=True, qat=True, start="run")


def test_a_checkpoint_holds_what_the_device_draws_from(monkeypatch: pytest.MonkeyPatch) -> None:
    device, drawn = torch.device("cuda", 1), {torch.device("cuda", 1): torch.tensor([7], dtype=torch.uint8)}
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda of: drawn[of].clone())
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda state, of: drawn.update({of: state}))
    state = random_state(device)
    first = torch.rand(3)
    drawn[device] = torch.tensor([9], dtype=torch.uint8)
    set_random_state(state, device)
    assert torch.equal(torch.rand(3), first)
    assert drawn[device].item() == 7
    assert set(random_state(torch.device("cpu"))) == {"rng"}
    set_random_state(random_state(torch.device("cpu")), device)  # of a run that began without


def test_precision_may_change_from_run_to_run(photos: Path, tmp_path: Path) -> None:
    for precision in ("float32", "bf16"):
        train(small(photos, epochs=1, precision=precision), tmp_path / precision, progress=False)


def test_a_refused_training_leaves_the_earlier_run_as_it_is(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small(photos, epochs=1), run, progress=False)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    refused: tuple[tuple[dict[str, object], type[EdgeAttnError], str], ...] = (
        ({"teacher": "nowhere"}, DataError, "there is no teacher"),
        ({"start": "nowhere"}, DataError, "no weights"),
        ({"attention": "none", "supervise": "kl"}, SpecError, "has no maps"),
        ({"teacher": str(run)}, SpecError, r"would write over .*run, which it builds on; choose another --out"),
        ({"start": f"{tmp_path}/./run"}, SpecError, "would write over"),
    )
    for changes, error, said in refused:
        with pytest.raises(error, match=said):
            train(small(photos, **changes), run, progress=False)
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_new_run_takes_the_place_of_an_earlier_one_and_of_nothing_else(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher-nano").mkdir()
    train(small(photos, epochs=2), tmp_path, progress=False)
    (tmp_path / "checkpoint.pt").write_bytes(b"of an earlier run")
    trained = train(small(photos, epochs=1), tmp_path, progress=False)
    assert load_run(tmp_path).recipe == trained.recipe
    assert len(learned(tmp_path)) == 1
    assert not (tmp_path / "checkpoint.pt").exists()
    assert (tmp_path / "teacher-nano").is_dir()
