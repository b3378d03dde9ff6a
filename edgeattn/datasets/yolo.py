"""Boxes from YOLO's text files, a line an object: class, centre x, centre y, width, height, as fractions of the picture.

DATA/images/train/1.jpg  DATA/labels/train/1.txt     and so val and test; or DATA/train/images, DATA/train/labels; or no parts
DATA/data.yaml                                       names: [apple, pear] (or {0: apple, 7: pear}); train, val, test: folders
DATA/classes.txt                                     instead: a name a line

A line of more numbers is a polygon: class, x, y, x, y, ...; its box is what encloses it, its mask what it encloses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from edgeattn.datasets.annotated import (
    Annotations,
    Gathered,
    listed,
    part_of,
    read_pictures,
)
from edgeattn.datasets.folder import PART_NAMES
from edgeattn.datasets.labelled import read_labels
from edgeattn.datasets.outlines import Outline
from edgeattn.errors import DataError
from edgeattn.imaging import list_pictures

FAR = 2.0
"""A fraction beyond is no fraction: the file is in pixels."""
_LAYOUT = "put pictures into DATA/images, labels of the same names into DATA/labels, and names into DATA/data.yaml"


def names_file(root: Path) -> Path | None:
    """The file that names the classes of a YOLO folder; of such a file: itself. None: there is none."""
    if root.is_file():
        return root if root.suffix in (".yaml", ".yml") else None
    candidates = [root / "data.yaml", root / "dataset.yaml", *sorted((*root.glob("*.yaml"), *root.glob("*.yml")))]
    candidates += [root / "classes.txt", root / "labels" / "classes.txt"]
    return next((path for path in candidates if path.is_file() and _told(path)), None)


def is_yolo(root: Path) -> bool:
    """Whether a folder, or a .yaml file, is of this form: it names classes, and its pictures' folders have labels beside."""
    file = names_file(root)
    if file is None:
        return False
    try:
        return any(_labels_of(folder).is_dir() for folder in _picture_folders(file, _told(file)).values())
    except DataError:
        return file == root


def read_yolo(
    root: str | Path, *, skip_missing: bool = False, progress: Callable[[int, int], None] | None = None
) -> Annotations:
    """Read a folder of YOLO's labels, or its .yaml file; every picture is decoded once. One without labels is a negative.

    Args:
        root: the folder or file.
        skip_missing: leave out pictures that cannot be read, and labels without a picture, and say which.
        progress: called with (pictures read, pictures in all).

    Raises:
        DataError: the folder is not of this form, or a line of a label file is not, or names an unknown class; pictures
            that are missing or cannot be read.
    """
    root = Path(root)
    file = names_file(root)
    if file is None:
        raise DataError(f"{root}: {'no file names the classes' if root.exists() else 'no such folder'}; {_LAYOUT}")
    told = _told(file)
    names = _names(file, told)
    folders = _picture_folders(file, told)
    homes: dict[Path, tuple[str, Path]] = {}
    for part, folder in folders.items():
        for path in list_pictures(folder):
            homes.setdefault(path, (part, folder))  # small sets name one folder as training and validation
    labels = {
        path: (_labels_of(home) / path.relative_to(home)).with_suffix(".txt") for path, (_, home) in homes.items()
    }
    lost = _without_picture([_labels_of(folder) for folder in folders.values()], set(labels.values()))
    if not any(path.is_file() for path in labels.values()):
        first = next(iter(labels.values()), _labels_of(next(iter(folders.values()))))
        raise DataError(
            f"{root}: none of its {len(labels)} pictures has labels; the first was sought as {first}; {_LAYOUT}"
        )
    if lost and not skip_missing:
        raise DataError(
            f"{root}: {len(lost)} label files have no picture: {listed(lost)}; add the pictures, "
            "or leave the labels out with skip_missing"
        )
    found = read_pictures(root, list(homes), skip_missing=skip_missing, progress=progress)
    places = {key: place for place, key in enumerate(sorted(names))}
    parsed = {path: _lines(labels[path]) for path in found.prints}
    _check_classes(file, {labels[path]: lines for path, lines in parsed.items()}, places)
    masked = any(len(values) > 5 for lines in parsed.values() for values in lines)
    gathered = Gathered(masked)
    for path, seen in found.prints.items():
        lines, scale = parsed[path], (seen.shape[1], seen.shape[0])
        boxes = np.array([_box(values) for values in lines]).reshape(-1, 4) * (*scale, *scale)
        of = [places[int(values[0])] for values in lines]
        crowd, outlines = [False] * len(lines), [_outline(values, scale) for values in lines]
        gathered.add(path, homes[path][0], seen, boxes=boxes, labels=of, crowd=crowd, outlines=outlines)
    return gathered.annotations(root, [names[key] for key in sorted(names)], (*found.skipped, *lost))


def _told(file: Path) -> Mapping[str, Any]:
    """What a .yaml file says; empty where it names no classes. A classes.txt: its names."""
    if file.suffix == ".txt":
        return {"names": list(read_labels(str(file)))}
    try:
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read as YAML ({str(error).splitlines()[0]})") from error
    return held if isinstance(held, dict) and isinstance(held.get("names"), list | dict) else {}


def _names(file: Path, told: Mapping[str, Any]) -> dict[int, str]:
    try:
        names = told["names"]
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        found = {int(key): str(name) for key, name in pairs}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: names no classes; write names: [apple, pear]") from error
    if not found:
        raise DataError(f"{file}: names no classes; write names: [apple, pear]")
    return found


def _picture_folders(file: Path, told: Mapping[str, Any]) -> dict[str, Path]:
    """The folders of pictures, by part; one that says none has the part ''."""
    root = file.parent.parent if file.parent.name == "labels" else file.parent
    entries = {PART_NAMES[key]: value for key, value in told.items() if key in PART_NAMES and value}
    if entries:
        return {part: _entry(file, told.get("path"), entries[part]) for part in PART_NAMES.values() if part in entries}
    images = root / "images"
    homes = [path for path in (images, root) if path.is_dir()]
    parts = {part_of(p.name): p for home in homes for p in sorted(home.iterdir()) if p.is_dir() and part_of(p.name)}
    folders = {part: path / "images" if (path / "images").is_dir() else path for part, path in parts.items()}
    if folders:
        return folders
    if images.is_dir():
        return {"": images}
    raise DataError(f"{root}: holds no folder 'images'; {_LAYOUT}")


def _entry(file: Path, base: Any, value: Any) -> Path:
    """The folder that an entry of a .yaml file means.

    Its own `path` is often that of another machine, and entries of Roboflow begin with `../` too much.
    """
    if not isinstance(value, str) or value.endswith(".txt"):
        raise DataError(f"{file}: '{value}' must be a folder of pictures")
    bases = [file.parent / str(base), file.parent] if base else [file.parent]
    tried = [home / each for home in bases for each in (value, value.removeprefix("../"))]
    for path in tried:
        if path.is_dir():
            return path / "images" if path.name != "images" and (path / "images").is_dir() else path
    raise DataError(f"{file}: there is no folder {tried[0]}; mend the path")


def _labels_of(folder: Path) -> Path:
    """Where the labels of a folder of pictures lie: the last `images` of its path reads `labels`."""
    parts = list(folder.parts)
    if "images" not in parts:
        return folder
    parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _without_picture(folders: list[Path], known: set[Path]) -> list[tuple[Path, str]]:
    found = sorted({path for folder in folders if folder.is_dir() for path in folder.rglob("*.txt")})
    return [(path, "no picture") for path in found if path not in known and path.name != "classes.txt"]


def _lines(file: Path) -> list[NDArray[np.float64]]:
    if not file.is_file():
        return []
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = np.array([float(value) for value in line.split()])
        except ValueError:
            values = np.empty(0)
        polygon = len(values) >= 7 and len(values) % 2 == 1
        if not (len(values) == 5 or polygon) or not np.isfinite(values).all() or values[0] % 1:
            raise DataError(
                f"{file}, line {number}: '{line.strip()[:60]}' is not: class, centre x, centre y, width, height"
            )
        if np.abs(values[1:]).max() > FAR:
            raise DataError(
                f"{file}, line {number}: {values[1:].max():g} is no fraction of the picture; are these pixels?"
            )
        rows.append(values)
    return rows


def _check_classes(file: Path, parsed: Mapping[Path, list[NDArray[np.float64]]], places: Mapping[int, int]) -> None:
    for path, lines in parsed.items():
        unknown = Counter(int(values[0]) for values in lines if int(values[0]) not in places)
        if unknown:
            ids = ", ".join(map(str, sorted(unknown)))
            raise DataError(f"{path}: class {ids} is not named in {file}; name it there, or mend the labels")


def _box(values: NDArray[np.float64]) -> list[float]:
    if len(values) == 5:
        _, x, y, width, height = values.tolist()
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    points = values[1:].reshape(-1, 2)
    return [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]


def _outline(values: NDArray[np.float64], scale: tuple[int, int]) -> Outline | None:
    return None if len(values) == 5 else [(values[1:].reshape(-1, 2) * scale).ravel().tolist()]
