"""What the tests of `deploy` share: a pico with efficient channel attention that knows discs, trained once."""

from __future__ import annotations

import disc_ladder
import discs
import pytest

from edgeattn.bundle import Bundle
from edgeattn.deploy.export import export
from edgeattn.train import Recipe, Trained, train


@pytest.fixture(scope="session")
def eca_run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Its run."""
    root = tmp_path_factory.mktemp("eca")
    recipe = Recipe(
        str(discs.write(root / "photos", 20)), attention="eca", imgsz=32, epochs=12, lr=0.01, batch_size=16, workers=0
    )
    return train(recipe, root / "run", progress=False)


@pytest.fixture(scope="session")
def eca_bundle(eca_run: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its bundle, without int8."""
    path, golden = tmp_path_factory.mktemp("bundle") / "discs.edgeattn", disc_ladder.CALIBRATION[:8]
    return export(eca_run.model, path, labels=eca_run.labels, imgsz=32, pictures=golden, mechanism="eca")
