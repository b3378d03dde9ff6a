"""Calibration sets: drawn by seed and class, listed by digest, checked when read again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgeattn._cv2 import cv2
from edgeattn.datasets.folder import scan
from edgeattn.deploy.calibration import draw, read
from edgeattn.errors import DataError


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for name, count in (("á", 30), ("b", 20)):
        (root / name).mkdir()
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(
                cv2.imencode(".png", rng.integers(0, 256, (20, 20, 3), np.uint8))[1].tobytes()
            )
    return scan(root)


def test_a_draw_is_stratified_and_repeatable(listing, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    drawn = draw(listing.samples, listing.labels, listing.root, seed=5, count=40)
    assert len(drawn) == 40
    assert Counter(Path(f).parts[0] for f in drawn.files) == drawn.strata
    assert drawn.strata["á"] == 24
    assert drawn.strata["b"] == 16
    assert draw(listing.samples, listing.labels, listing.root, seed=5, count=40).files == drawn.files
    assert draw(listing.samples, listing.labels, listing.root, seed=6, count=40).files != drawn.files
    drawn.write(tmp_path / "c.toml")
    again = read(tmp_path / "c.toml")
    assert again == drawn
    assert len(again.pictures()) == 40


def test_what_is_refused(listing, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"31 pictures are too few"):
        draw(listing.samples[:31], listing.labels, listing.root)
    with pytest.raises(DataError, match=r"cannot be read"):
        read(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("schema = [")
    with pytest.raises(DataError, match=r"not valid TOML"):
        read(tmp_path / "bad.toml")
    (tmp_path / "new.toml").write_text('schema = "edgeattn.calibration/9"')
    with pytest.raises(DataError, match=r"schema 'edgeattn.calibration/9'"):
        read(tmp_path / "new.toml")


def test_a_changed_or_missing_picture_is_named(listing, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    drawn = draw(listing.samples, listing.labels, listing.root, count=32)
    drawn.write(tmp_path / "c.toml")
    text = (tmp_path / "c.toml").read_text(encoding="utf-8").replace(drawn.digests[0], "0" * 64)
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"not the picture that the calibration set lists"):
        read(tmp_path / "c.toml").pictures()
    (tmp_path / "c.toml").write_text(text.replace(drawn.files[0], "b/none.png"), encoding="utf-8")
    with pytest.raises(DataError, match=r"none\.png, which is missing"):
        read(tmp_path / "c.toml").pictures()
