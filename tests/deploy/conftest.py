"""What the tests of `deploy` share: nets with efficient channel attention that know discs, trained once."""

from __future__ import annotations

from pathlib import Path

import disc_ladder
import discs
import pytest
import small

from edgeattn.bundle import Bundle
from edgeattn.deploy.export import export
from edgeattn.train import Recipe, Trained, train


def run_of_eca(root: Path) -> Trained:
    """A pico's run."""
    recipe = Recipe(
        str(discs.write(root / "photos", 20)), attention="eca", imgsz=32, epochs=12, lr=0.01, batch_size=16, workers=0
    )
    return train(recipe, root / "run", progress=False)


def bundle_of(run: Trained, root: Path) -> Bundle:
    """Its bundle, without int8."""
    golden = disc_ladder.CALIBRATION[:8]
    return export(run.model, root / "discs.edgeattn", labels=run.labels, imgsz=32, pictures=golden, mechanism="eca")


@pytest.fixture(scope="session")
def eca_run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A small net's run."""
    with small.five_blocks():
        return run_of_eca(tmp_path_factory.mktemp("eca"))


@pytest.fixture(scope="session")
def eca_bundle(eca_run: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small net's bundle, without int8."""
    return bundle_of(eca_run, tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def pico_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A whole pico's bundle, without int8."""
    root = tmp_path_factory.mktemp("pico")
    return bundle_of(run_of_eca(root), root)
