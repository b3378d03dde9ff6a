"""Distillation by every method, from every kind of teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import discs
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeattn.errors import DataError, NameNotFoundError, SpecError
from edgeattn.nn import build_model
from edgeattn.train import Recipe, Trained, train
from edgeattn.train.augment import NO_AUGMENT
from edgeattn.train.distill import METHODS, Distiller, labels_weight, methods, pair_blocks, resize
from edgeattn.train.loader import FolderViews, Loader
from edgeattn.train.runs import weights_attributions
from edgeattn.train.sources import open_data
from edgeattn.train.teachers import Ensemble, OnnxTeacher, Remembered, open_teacher
from edgeattn.train.watch import Seen, watch

LABELS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return discs.write(tmp_path_factory.mktemp("photos"), 20)


@pytest.fixture(scope="module")
def teacher(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    recipe = small(photos, model="nano", attention="coord", epochs=6, lr=0.01)
    return train(recipe, tmp_path_factory.mktemp("runs") / "teacher", progress=False)


def small(photos: Path, **changes: object) -> Recipe:
    return replace(Recipe(str(photos), attention="se", imgsz=32, epochs=3, batch_size=16, workers=0), **changes)  # type: ignore[arg-type]


def opened(teacher: str | Path, labels: tuple[str, ...] = LABELS, **changes: object) -> nn.Module:
    return open_teacher(small(Path("none"), teacher=str(teacher), **changes), labels)


def seen(net: nn.Module, *, maps: bool = False, features: bool = False) -> Seen:
    torch.manual_seed(0)
    return watch(net.eval(), torch.randn(6, 3, 32, 32), maps=maps, features=features)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_student_learns_by_every_method(method: str, photos: Path, teacher: Trained, tmp_path: Path) -> None:
    recipe = small(photos, teacher=str(teacher.folder), distill=method, epochs=4)
    metrics = train(recipe, tmp_path / "run", progress=False).metrics
    assert metrics[method] > 0
    assert metrics["loss"] == pytest.approx(metrics["cross_entropy"] + metrics[method], rel=1e-4)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_reaches_the_student_and_not_the_teacher(method: str) -> None:
    kind = METHODS[method].looks_at
    asked = {"maps": kind == "maps", "features": kind == "features"}
    own, other = build_model("pico", 3, attention="se", imgsz=32), build_model("nano", 3, attention="coord", imgsz=32)
    student = seen(own, **asked)
    with torch.no_grad():
        told = seen(other, **asked)
    distiller = Distiller((method,), student, told)
    distiller(student, told, torch.arange(6) % 3)[method].backward()
    assert max(float(p.grad.abs().max()) for p in own.parameters() if p.grad is not None) > 0
    assert all(p.grad is not None for p in distiller.parameters())
    assert all(p.grad is None for p in other.parameters())


@pytest.mark.parametrize("method", ["kd", "dkd", "dist", "at", "rkd", "cwd", "maps"])
def test_a_twin_has_nothing_to_learn(method: str) -> None:
    kind = METHODS[method].looks_at
    net = build_model("pico", 3, attention="coord", imgsz=32)
    told = seen(net, maps=kind == "maps", features=kind == "features")
    term = Distiller((method,), told, told)(told, told, torch.arange(6) % 3)[method]
    assert term.item() == pytest.approx(0.0, abs=2e-4)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"mgd"}))  # whose adapter computes in bf16 itself
def test_every_method_compares_in_float32(method: str) -> None:
    """In bf16 the distances of like features cancel, and DKD and DIST are off by a tenth."""
    rng = torch.Generator().manual_seed(0)

    def given() -> Seen:
        logits, maps, features = (torch.rand(6, *shape, generator=rng) for shape in ((3,), (4, 4), (8, 4, 4)))
        return Seen(5 * logits, {"block": maps}, 1 + 0.1 * features)

    student, told, label = given(), given(), torch.arange(6) % 3
    distiller = Distiller((method,), student, told)
    exact = distiller(student, told, label)[method]
    with torch.autocast("cpu", torch.bfloat16):
        assert distiller(student, told, label)[method].item() == exact.item()


def test_relations_between_pictures_want_more_than_one(teacher: Trained, photos: Path, tmp_path: Path) -> None:
    recipe = small(photos, teacher=str(teacher.folder), distill="dist+rkd", accumulate=16)
    said = r"of 16 a part has 1 \(processes: 1, accumulate=16\); raise batch_size, or accumulate less"
    with pytest.raises(SpecError, match=said):
        train(recipe, tmp_path / "run", progress=False)


def test_methods_add_up(photos: Path, teacher: Trained, tmp_path: Path) -> None:
    assert methods("dist+maps") == ("dist", "maps")
    assert labels_weight(("kd", "at")) == 0.1
    with pytest.raises(NameNotFoundError, match=r"'distt'.*mean 'dist'"):
        methods("kd+distt")
    recipe = small(photos, teacher=str(teacher.folder), distill="dist+maps+cwd", epochs=1)
    metrics = train(recipe, tmp_path / "run", progress=False).metrics
    assert {"dist", "maps", "cwd"} <= metrics.keys()


def test_maps_pass_between_different_mechanisms_by_depth() -> None:
    assert pair_blocks(("a", "b", "c", "d"), ("x", "y")) == (("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"))
    assert pair_blocks(("a",), ("x", "y")) == (("a", "x"),)
    assert resize(torch.ones(2, 8, 8), torch.zeros(2, 4, 4)).shape == (2, 4, 4)
    assert resize(torch.ones(2, 3, 4, 4), torch.zeros(2, 5, 6, 6)).shape == (2, 3, 6, 6)
    own, other = build_model("pico", 3, attention="shsa", imgsz=32), build_model("nano", 3, attention="se", imgsz=32)
    student, told = seen(own, maps=True), seen(other, maps=True)
    assert len(student.maps) != len(told.maps)
    assert Distiller(("maps",), student, told)(student, told, torch.zeros(6).long())["maps"].item() > 0
    with pytest.raises(SpecError, match=r"the teacher has no attention"):
        Distiller(("maps",), student, seen(build_model("nano", 3, imgsz=32), maps=True))


def test_a_bundle_and_its_onnx_file_teach_as_the_net_itself(teacher: Trained, tmp_path: Path) -> None:
    from edgeattn.deploy import export

    bundle = export(
        teacher.model, tmp_path / "t", labels=LABELS, imgsz=32, pictures=[picture for picture, _ in discs.pictures(1)]
    )
    views = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    x = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 128 - 1
    with torch.no_grad():
        expected = teacher.model(x)
        for name in (bundle.path, bundle.path / "float.onnx"):
            torch.testing.assert_close(opened(name)(x), expected, atol=1e-3, rtol=1e-3)


class Plain(nn.Sequential):
    def __init__(self, classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))


def save(net: Plain, file: Path, shape: tuple[int | str, ...] = ("n", 3, 32, 32), *, softmax: bool = False) -> Path:
    """Write it as another tool would."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[1, 2] if shape[3] == 3 else [2, 3], keepdims=0),
        helper.make_node("Gemm", ["means", "w", "b"], ["logits"], transB=1),
        *([helper.make_node("Softmax", ["logits"], ["shares"], axis=1)] if softmax else []),
    ]
    weights = [
        numpy_helper.from_array(p.detach().numpy(), name) for p, name in zip(net[2].parameters(), "wb", strict=True)
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("shares" if softmax else "logits", TensorProto.FLOAT, [shape[0], 3])],
        weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return file


def test_of_a_last_softmax_the_logits_are_taken(tmp_path: Path) -> None:
    net = Plain(3).eval()
    x = torch.randn(4, 3, 32, 32)
    found = opened(save(net, tmp_path / "shares.onnx", softmax=True))(x)
    torch.testing.assert_close(found, net(x).detach().log_softmax(1), atol=1e-4, rtol=1e-4)


class Shares(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Seven(Plain):
    def __init__(self, classes: int) -> None:
        super().__init__(7)


class Pair(Plain):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Seven", r"teacher .*:Seven gives \(2, 7\) for two pictures, and the data has 3 classes"),
        ("Plain,Seven", r"teacher [^,]*:Seven gives \(2, 7\)"),
        ("Pair", r"gives tuple for two pictures, which is no answer to classify"),
        ("Shares", r"gives probabilities; leave out its softmax"),
    ],
)
def test_what_a_teacher_answers_is_looked_at_once(name: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        opened(",".join(f"{__name__}:{part}" for part in name.split(",")))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (("n", 32, 32, 3), r"net.onnx takes pictures of 3 x 32, the recipe has 32 x 32"),
        ((8, 3, 32, 32), r"teacher .*net.onnx fails on two pictures \(2, 3, 32, 32\): .*Got: 2 Expected: 8"),
        (("n", 3, 32, 48), r"takes pictures of 48 x 32, the recipe has 32 x 32; train at its size"),
    ],
)
def test_an_onnx_file_that_takes_other_pictures_is_no_teacher(
    shape: tuple[int | str, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        opened(save(Plain(3), tmp_path / "net.onnx", shape))


def test_a_teacher_of_pictures_that_are_not_square(tmp_path: Path) -> None:
    teacher = opened(save(Plain(3), tmp_path / "wide.onnx", ("n", 3, 32, 48)), imgsz=48, height=32)
    assert teacher(torch.zeros(2, 3, 32, 48)).shape == (2, 3)


def test_a_float_onnx_of_another_tool_teaches(photos: Path, tmp_path: Path) -> None:
    net = Plain(3).eval()
    save(net, tmp_path / "net.onnx")
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(OnnxTeacher(tmp_path / "net.onnx")(x), net(x).detach(), atol=1e-4, rtol=1e-4)
    metrics = train(
        small(photos, teacher=str(tmp_path / "net.onnx"), epochs=1), tmp_path / "run", progress=False
    ).metrics
    assert metrics["kd"] > 0
    (told,) = weights_attributions(tmp_path / "run")
    assert told["licence"] == "not known"
    (tmp_path / "bad.onnx").write_bytes(b"no")
    with pytest.raises(DataError, match=r"bad.onnx cannot be opened as a teacher"):
        opened(tmp_path / "bad.onnx")


def test_several_teachers_speak_as_the_mean_of_their_probabilities(teacher: Trained) -> None:
    a, b = Plain(3), Plain(3)
    x = torch.randn(4, 3, 32, 32)
    mean = (a(x).softmax(1) + b(x).softmax(1)) / 2
    torch.testing.assert_close(Ensemble([a, b])(x).softmax(1), mean)
    both = opened(f"{teacher.folder},{__name__}:Plain")
    assert both(x).shape == (4, 3)
    with pytest.raises(SpecError, match=r"Ensemble gives no features"):
        watch(both, x, features=True)


def test_teachers_that_do_not_fit_are_named(photos: Path, teacher: Trained, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not know yellow and knows green besides"):
        opened(teacher.folder, ("blue", "red", "yellow"))
    with pytest.raises(DataError, match=r"in another order: blue, green, red; the data red, green, blue"):
        opened(teacher.folder, ("red", "green", "blue"))
    with pytest.raises(DataError, match=r"there is no teacher nowhere"):
        opened("nowhere")
    with pytest.raises(DataError, match=r"holds neither a run nor a bundle"):
        opened(photos)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.asked = Plain(3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        return self.net(x)  # type: ignore[no-any-return]


def test_a_teacher_is_asked_once_where_the_views_never_change(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting()
    monkeypatch.setattr("edgeattn.train.loop.open_teacher", lambda recipe, labels: counting)
    fixed = small(photos, augment=NO_AUGMENT, teacher="x:y", epochs=4)
    views = open_data(fixed, tmp_path).train
    assert isinstance(views, FolderViews)
    assert views.is_fixed
    train(fixed, tmp_path / "fixed", progress=False)
    probes = 2
    assert counting.asked <= len(views) + probes
    assert (tmp_path / "fixed" / "teacher-0.npy").is_file()
    counting.asked = 0
    train(small(photos, teacher="x:y", epochs=4), tmp_path / "changing", progress=False)
    assert counting.asked >= 3 * len(views)
    other = Counting()
    monkeypatch.setattr("edgeattn.train.loop.open_teacher", lambda recipe, labels: other)
    train(fixed, tmp_path / "fixed", progress=False)
    assert other.asked >= len(views) / 2, "another teacher's answers are not taken for its own"
    kept = Remembered(counting, tmp_path / "fixed" / "teacher-0.npy", len(views), 3)
    counting.asked = 0
    known = np.flatnonzero(~np.isnan(kept.logits).any(axis=1))[:4]
    kept.answer(torch.randn(4, 3, 32, 32), torch.from_numpy(known))
    assert counting.asked == 0


def test_answers_that_were_cut_off_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "teacher-0.npy"
    Remembered(Plain(3), file, 100, 3)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    whole = file.read_bytes()
    for cut in (whole[:-400], b""):
        file.write_bytes(cut)
        with pytest.raises(SpecError, match=r"teacher-0.npy was cut off; remove it, and the teacher is asked anew"):
            Remembered(Plain(3), file, 100, 3)
        assert file.read_bytes() == cut


def test_kept_views_come_again_and_a_teacher_is_asked_once_for_each(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting()
    monkeypatch.setattr("edgeattn.train.loop.open_teacher", lambda recipe, labels: counting)
    recipe = small(photos, teacher="x:y", views_kept=2, epochs=6)
    views = open_data(recipe, tmp_path).train
    train(recipe, tmp_path / "run", progress=False)
    # What is left over at an epoch's end differs from epoch to epoch, so that not all are asked for.
    assert 1.5 * len(views) <= counting.asked <= 2 * len(views) + 2
    assert len(np.load(tmp_path / "run" / "teacher-0.npy")) == 2 * len(views)

    loader = Loader(views, batch_size=8, seed=0, workers=0, kept=2)
    shown = [
        {int(p): b for batch in loader.epoch(e) for p, b in zip(batch.places, batch.pictures, strict=True)}
        for e in range(3)
    ]
    again = shown[0].keys() & shown[2].keys()
    assert len(again) > len(views) / 2
    assert all(torch.equal(shown[0][place], shown[2][place]) for place in again)
    assert not shown[0].keys() & shown[1].keys()
    place = next(p for p in shown[0] if p + len(views) in shown[1])
    assert not torch.equal(shown[0][place], shown[1][place + len(views)])
