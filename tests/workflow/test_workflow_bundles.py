"""From a run to a bundle: pictures that are tested with are kept out of int8's calibration."""

from __future__ import annotations

from pathlib import Path

import discs
import numpy as np
import pytest

from edgeattn.bundle import Bundle
from edgeattn.datasets.folder import scan
from edgeattn.deploy.calibration import draw
from edgeattn.errors import DataError
from edgeattn.imaging import read_picture
from edgeattn.spec import InputSpec
from edgeattn.train.augment import Augment
from edgeattn.train.loader import ArrayPictures, FolderViews, PictureFiles, TrainingData
from edgeattn.workflow import quantize_run


@pytest.mark.parametrize("kind", ["files", "arrays"])
def test_calibration_pictures_of_the_test_split_are_refused(kind: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    listing = scan(discs.write(tmp_path / "photos", 12))
    calibration = draw(listing.samples, listing.labels, listing.root)
    pictures = np.stack([read_picture(sample.path) for sample in listing.samples[:3]])
    test = PictureFiles(listing.samples[:3]) if kind == "files" else ArrayPictures(pictures, np.zeros(3, np.int64))
    views = FolderViews(listing.samples, InputSpec(32, 32), Augment())
    data = TrainingData(listing.labels, views, PictureFiles(listing.samples[-3:]), test)
    with pytest.raises(
        DataError, match=r"3 of the calibration pictures are in the test split, too: .*; calibrate on training"
    ):
        quantize_run(tiny_bundle, data, tmp_path / "run", calibration)
    assert not (tmp_path / "run").exists()
