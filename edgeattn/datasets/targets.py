"""Where to look on labelled pictures: masks, boxes or gaze density maps that lie beside them.

MASKS/apple/IMG_1.png           mirrors PHOTOS/apple/IMG_1.jpg: a mask or a map of gaze, black where not to look
boxes.json                      {"apple/IMG_1.jpg": [[x, y, width, height], ...]}, or COCO's annotations; pixels of the picture
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.errors import DataError, PictureError
from edgeattn.imaging import read_picture

Density = NDArray[np.float32]

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
"""Of maps, in the order in which they are looked for."""
ASPECT = 0.02
"""Greatest relative difference between the sides' ratio of a picture and of its map: more is a map of another picture."""


@dataclass(frozen=True)
class Targets:
    """Where to look, by picture."""

    source: Path
    """The folder of maps, or the file of boxes."""
    root: Path
    """The folder of the pictures."""
    boxes: Mapping[str, Sequence[Sequence[float]]] | None = None
    """Boxes by the picture's path below `root`, or its name; None: maps."""

    def of(self, picture: Path, shape: Sequence[int]) -> Density:
        """Where to look on a picture of `shape` (H, W, ...): (H, W) between 0 and 1, all zero where nothing is known.

        Raises:
            DataError: a map that cannot be read, or of other proportions than the picture; a box that is none.
        """
        if self.boxes is not None:
            return self._boxes_of(picture, shape)
        file = self.file(picture)
        return np.zeros(shape[:2], np.float32) if file is None else _read(file, picture, shape)

    def file(self, picture: Path) -> Path | None:
        """The map of a picture; None where there is none."""
        stem = self.source / picture.relative_to(self.root)
        return next((path for suffix in SUFFIXES if (path := stem.with_suffix(suffix)).is_file()), None)

    def _boxes_of(self, picture: Path, shape: Sequence[int]) -> Density:
        assert self.boxes is not None
        name = picture.relative_to(self.root).as_posix()
        where = np.zeros(shape[:2], np.float32)
        for box in self.boxes.get(name, self.boxes.get(picture.name, ())):
            x, y, w, h = box
            if not (w >= 0 and h >= 0):
                raise DataError(
                    f"{self.source}: box {list(box)} of {name} is none; write [x, y, width, height] in pixels"
                )
            left, top = max(0, round(x)), max(0, round(y))
            where[top : max(top, round(y + h)), left : max(left, round(x + w))] = 1.0
        return where


def open_targets(source: str | Path, root: str | Path) -> Targets:
    """Open a folder of maps or a file of boxes for the pictures below `root`.

    Raises:
        DataError: there is neither, or the file is not of either form.
    """
    source, root = Path(source), Path(root)
    if source.is_dir():
        return Targets(source, root)
    if source.is_file() and source.suffix == ".json":
        return Targets(source, root, _read_boxes(source))
    raise DataError(
        f"{source} tells not where to look; give a folder of maps that mirrors {root} (CLASS/NAME.png), or a .json of boxes"
    )


def check_targets(
    targets: Targets, pictures: Sequence[Path], progress: Callable[[int, int], None] | None = None
) -> int:
    """Read the targets of all pictures once, so that a wrong one shows now; return how many tell nothing.

    Raises:
        DataError: the first that is wrong, or all of them tell nothing.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        empty = 0
        for done, known in enumerate(pool.map(lambda path: _tells(targets, path), pictures), 1):
            empty += not known
            if progress is not None:
                progress(done, len(pictures))
    if pictures and empty == len(pictures):
        raise DataError(
            f"{targets.source} tells of none of the {empty} pictures below {targets.root}; "
            f"the first was sought as {_sought(targets, pictures[0])}"
        )
    return empty


def _tells(targets: Targets, path: Path) -> bool:
    if targets.boxes is None and targets.file(path) is None:
        return False
    try:
        picture = read_picture(path)
    except PictureError:
        return False  # whoever reads the pictures says so
    return bool(targets.of(path, picture.shape).any())


def _sought(targets: Targets, picture: Path) -> str:
    name = picture.relative_to(targets.root)
    return f"'{name.as_posix()}'" if targets.boxes is not None else str((targets.source / name).with_suffix(".png"))


def _read(file: Path, picture: Path, shape: Sequence[int]) -> Density:
    data = np.frombuffer(file.read_bytes(), np.uint8)
    grey = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None  # of nothing OpenCV raises
    if grey is None:
        raise DataError(f"{file} cannot be read as a picture; write the map again, or remove it")
    if grey.ndim == 3:  # a coloured mask: whatever is not black
        grey = grey[..., :3].max(axis=2)
    (height, width), (h, w) = shape[:2], grey.shape
    if abs(width * h / (height * w) - 1) > ASPECT:
        raise DataError(
            f"{file} is {w} x {h}, its picture {picture} {width} x {height}; a map must cover the whole picture"
        )
    where = grey.astype(np.float32) / max(1.0, float(grey.max()))
    return np.asarray(cv2.resize(where, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _read_boxes(source: Path) -> dict[str, list[list[float]]]:
    try:
        held: Any = json.loads(source.read_text(encoding="utf-8"))
        if "annotations" in held and "images" in held:
            names = {image["id"]: image["file_name"] for image in held["images"]}
            boxes: dict[str, list[list[float]]] = {}
            for annotation in held["annotations"]:
                boxes.setdefault(names[annotation["image_id"]], []).append(_box(annotation["bbox"]))
            return boxes
        return {str(name): [_box(box) for box in found] for name, found in held.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{source} holds no boxes ({error}); write {{picture: [[x, y, width, height], ...]}}, or COCO's annotations"
        ) from error


def _box(values: Sequence[Any]) -> list[float]:
    box = [float(value) for value in values]
    if len(box) != 4:
        raise ValueError(f"a box has 4 numbers, not {len(box)}")
    if not all(map(math.isfinite, box)):
        raise ValueError(f"box {box} is not finite")
    return box
