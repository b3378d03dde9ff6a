"""What a training minimises: supervision of maps, adversarial pictures, learnt weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeattn.datasets.cards import Cards
from edgeattn.errors import DataError, EdgeAttnError, NameNotFoundError, SpecError
from edgeattn.evaluation.looking import energy_inside
from edgeattn.nn import build_model
from edgeattn.train import Recipe, TrainingData, load_run, train
from edgeattn.train.losses import map_kl, soft_cross_entropy
from edgeattn.train.objective import SUPERVISE_WARMUP, Objective
from edgeattn.train.watch import watch

BASE = Recipe("none", attention="spatial", imgsz=32, label_smoothing=0.0)


def batch(count: int = 6) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    where = torch.zeros(count, 8, 8)
    where[:, 2:5, 3:6] = 1.0
    label = torch.arange(count) % 3
    return torch.randn(count, 3, 32, 32).clamp(-1, 1), torch.nn.functional.one_hot(label, 3).float(), where


def objective(recipe: Recipe, attention: str = "spatial") -> Objective:
    torch.manual_seed(1)
    recipe = replace(recipe, attention=attention)
    return Objective(recipe, build_model("pico", 3, attention=attention, imgsz=32), None).eval()


def test_the_maps_loss_is_the_mean_over_blocks_each_at_its_own_size() -> None:
    made = objective(replace(BASE, supervise="kl", supervise_weight=2.0))
    x, target, where = batch()
    terms = made(x, target, where, progress=SUPERVISE_WARMUP)
    seen = watch(made.model, x, maps=True)
    sizes = {m.shape[-1] for m in seen.maps.values()}
    assert sizes == {32, 16, 8, 4}
    expected = []
    for m in seen.maps.values():
        side = m.shape[-1]
        resized = (
            torch.nn.functional.interpolate(where[:, None], (side, side), mode="bilinear")[:, 0]
            if side > 8
            else torch.nn.functional.avg_pool2d(where[:, None], 8 // side)[:, 0]
        )
        expected.append(map_kl(m, resized).item())
    assert terms["looking_kl"].item() == pytest.approx(2 * np.mean(expected), rel=1e-5)
    assert terms["cross_entropy"].item() == pytest.approx(soft_cross_entropy(seen.answer, target).item(), rel=1e-5)


def test_the_maps_loss_rises_then_falls() -> None:
    made = objective(replace(BASE, supervise="kl"))
    x, target, where = batch()
    seen = [made(x, target, where, progress=p)["looking_kl"].item() for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    full = seen[2]
    assert seen == pytest.approx([0, 0.5 * full, full, 0.55 * full, 0.1 * full], rel=1e-4)


@pytest.mark.parametrize(
    ("attention", "supervise"),
    [(name, "kl") for name in ("se", "coord", "cbam_lite", "shsa", "xca", "lka", "simam", "triplet", "region")]
    + [("coord", "ce"), ("coord", "cosine")],
)
def test_every_mechanism_learns_where_to_look(attention: str, supervise: str) -> None:
    made = objective(replace(BASE, supervise=supervise), attention).train()
    x, target, where = batch()
    made(x, target, where, progress=0.1)[f"looking_{supervise}"].backward()
    slopes = [p.grad for name, p in made.model.named_parameters() if p.grad is not None]
    assert any(float(g.abs().max()) > 0 for g in slopes)


def test_bce_wants_gates() -> None:
    x, target, where = batch()
    assert objective(replace(BASE, supervise="bce"))(x, target, where, progress=0.1)["looking_bce"].item() > 0
    with pytest.raises(SpecError, match=r"compares gates between 0 and 1, and a map of se reaches .*take kl"):
        objective(replace(BASE, supervise="bce"), "se")(99 * x, target, where, progress=0.1)


@pytest.mark.parametrize(("attention", "supervise"), [("spatial", "bce"), ("se", "kl"), ("coord", "cosine")])
def test_losses_are_exact_where_the_net_computes_in_bf16(
    attention: str, supervise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly open gates round to 1 in bf16, and CUDA refuses binary cross entropy there."""
    made = objective(replace(BASE, supervise=supervise), attention)
    x, target, where = batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        seen = watch(made.model, x, maps=True)
    open_gates = {path: 0.98 + 0.02 * m / m.amax() for path, m in seen.maps.items()}
    assert {value.dtype for value in (seen.answer, *seen.maps.values())} == {torch.float32}
    seen = seen._replace(maps=open_gates)
    monkeypatch.setattr("edgeattn.train.objective.watch", lambda *_, **__: seen)
    exact = made(x, target, where, progress=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x, target, where, progress=0.1)
    assert {name: term.item() for name, term in found.items()} == {name: term.item() for name, term in exact.items()}


def test_what_cannot_be_supervised_is_said() -> None:
    x, target, _ = batch()
    with pytest.raises(SpecError, match=r"attention none has no maps"):
        objective(replace(BASE, supervise="kl"), "none")
    with pytest.raises(DataError, match=r"needs to know where to look.*targets=PATH"):
        objective(replace(BASE, supervise="kl"))(x, target, torch.zeros(6, 0, 0), progress=0.5)
    with pytest.raises(SpecError, match=r"no block stages.9.0; there are stages.0.0"):
        objective(replace(BASE, supervise="kl", supervise_blocks="stages.9.0"))
    with pytest.raises(NameNotFoundError, match=r"'kll'.*mean 'kl'"):
        replace(BASE, supervise="kll")
    assert objective(replace(BASE, supervise="kl", supervise_blocks="last")).blocks == ("stages.3.1",)


def test_uncertainty_weights_are_learnt() -> None:
    made = objective(replace(BASE, supervise="kl", weighting="uncertainty"))
    x, target, where = batch()
    fixed = objective(replace(BASE, supervise="kl"))(x, target, where, progress=0.1)
    terms = made(x, target, where, progress=0.1)
    for name, term in fixed.items():
        assert terms[name].item() == pytest.approx(term.item() / 2, rel=1e-5), "s = 1: L / 2 + log 1"
    torch.stack(list(terms.values())).sum().backward()
    for name, sigma in made.log_sigma.items():
        assert float(sigma.grad) == pytest.approx(1 - fixed[name].item(), rel=1e-4), (
            "d/ds of L exp(-2 s) / 2 + s at s = 0"
        )


def test_fgsm_pictures_are_harder_and_stay_near() -> None:
    made = objective(replace(BASE, fgsm=8.0))
    x, target, where = batch()
    turned = made._turned(x, target)
    assert float((turned - x).abs().max()) <= 8 / 128 + 1e-6
    assert float(turned.min()) >= -1.0
    assert float(turned.max()) <= 127 / 128
    before, after = (soft_cross_entropy(made.model(p), target).item() for p in (x, turned))
    assert after > before
    terms = made(x, target, where, progress=0.5)
    assert terms["cross_entropy"].item() == pytest.approx(before / 2, rel=1e-5)
    assert terms["adversarial"].item() == pytest.approx(after / 2, rel=1e-4)


class Marked:
    """A bright square somewhere, whose corner is the label; where to look is the square, now and then not known."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def view(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, int, np.ndarray]:
        picture, where = rng.integers(0, 120, (32, 32, 3)).astype(np.uint8), np.zeros((32, 32), np.float32)
        label = index % 2
        y, x = int(rng.integers(0, 24)), int(rng.integers(0, 8)) + 16 * label
        picture[y : y + 8, x : x + 8] = 250
        if index % 4:
            where[y : y + 8, x : x + 8] = 1.0
        return picture, label, where


def test_training_with_supervision_looks_where_it_is_told(tmp_path: Path) -> None:
    held = [Marked(64).view(i, np.random.default_rng((5, i))) for i in range(1, 64, 2)]
    data = TrainingData(("left", "right"), Marked(96), [(p, label) for p, label, _ in held])
    recipe = replace(
        BASE, data="marked", supervise="kl", supervise_weight=5.0, epochs=8, batch_size=16, workers=0, lr=0.04
    )
    trained = train(recipe, tmp_path / "run", data=data, progress=False)
    assert trained.metrics["told_where"] == pytest.approx(0.75)
    x = torch.from_numpy(np.stack([p[..., ::-1] for p, _, _ in held])).permute(0, 3, 1, 2).float() / 128 - 1
    with torch.no_grad():
        found = trained.model.attend(x)[1]["stages.2.0"].numpy()  # type: ignore[operator]
    inside = np.mean([energy_inside(m, w > 0) for m, (_, _, w) in zip(found, held, strict=True) if w.any()])
    assert inside > 0.25, "a sixteenth of the picture is marked"


def test_cards_know_where_to_look(tmp_path: Path) -> None:
    recipe = replace(
        BASE, data="cards", supervise="kl", epochs=1, views_per_epoch=32, batch_size=16, workers=0, imgsz=32
    )
    from edgeattn.train.sources import open_data

    data = replace(open_data(recipe, tmp_path), validation=[(Cards("validation", size=32).sample(0).picture, 0)])
    trained = train(recipe, tmp_path / "run", data=data, progress=False)
    assert trained.metrics["told_where"] == 1.0
    assert load_run(tmp_path / "run").recipe.supervise == "kl"


def test_data_that_does_not_tell_stops_before_anything_is_learnt(tmp_path: Path) -> None:
    class Silent(Marked):
        def view(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:  # type: ignore[override]
            return super().view(index, rng)[:2]

    data = TrainingData(("left", "right"), Silent(32), [])
    with pytest.raises(EdgeAttnError, match=r"the data does not tell"):
        train(replace(BASE, supervise="kl", workers=0), tmp_path / "run", data=data, progress=False)
