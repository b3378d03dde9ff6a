"""Boxes from YOLO's text files, a line an object: class, centre x, centre y, width, height, as fractions of the picture.

DATA/images/train/1.jpg  DATA/labels/train/1.txt     and so val and test; or DATA/train/images, DATA/train/labels; or no parts
DATA/data.yaml                                       names: [apple, pear] (or {0: apple, 7: pear}); train, val, test: folders,
                                                     text files with a picture's path a line, or lists of these
DATA/classes.txt                                     instead: a name a line

A line of more numbers is a polygon: class, x, y, x, y, ...; its box is what encloses it, its mask what it encloses. With a
`kpt_shape` in the .yaml file they are keypoints of a pose, which are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
from edgeattn.datasets.labelled import distinct, read_labels
from edgeattn.datasets.outlines import Outline
from edgeattn.errors import DataError
from edgeattn.imaging import list_pictures

FAR = 2.0
"""From here on a number is no fraction of the picture: the file is in pixels, or it is how well a keypoint is seen."""
_LAYOUT = "put pictures into DATA/images, labels of the same names into DATA/labels, and names into DATA/data.yaml"


class _Source(NamedTuple):
    part: str
    """`train`, `validation`, `test`, or empty where nothing says so."""
    path: Path
    """A folder of pictures, or a text file with a picture's path a line."""

    def pictures(self) -> list[Path]:
        return list_pictures(self.path) if self.path.is_dir() else _listed(self.path)

    def folders(self) -> set[Path]:
        return {self.path} if self.path.is_dir() else {path.parent for path in _listed(self.path)}


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
        return any(_labels_of(folder).is_dir() for source in _sources(file, _told(file)) for folder in source.folders())
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
    keypoints = _keypoints(file, told)
    sources = _sources(file, told)
    parts: dict[Path, str] = {}
    for source in sources:
        for path in source.pictures():
            parts.setdefault(path, source.part)  # small sets name one folder as training and validation
    labels = {path: _labels_of(path.parent) / f"{path.stem}.txt" for path in parts}
    whole = [_labels_of(source.path) for source in sources if source.path.is_dir()]
    lost = _without_picture(whole, set(labels.values()))
    if not any(path.is_file() for path in labels.values()):
        first = next(iter(labels.values()), whole[0])
        raise DataError(
            f"{root}: none of its {len(labels)} pictures has labels; the first was sought as {first}; {_LAYOUT}"
        )
    if lost and not skip_missing:
        raise DataError(
            f"{root}: {len(lost)} label files have no picture: {listed(lost)}; add the pictures, "
            "or leave the labels out with --skip-missing"
        )
    found = read_pictures(root, list(parts), skip_missing=skip_missing, progress=progress)
    places = {key: place for place, key in enumerate(sorted(names))}
    parsed = {path: _lines(labels[path], keypoints) for path in found.prints}
    _check_classes(file, {labels[path]: lines for path, lines in parsed.items()}, places)
    masked = any(len(values) > 5 for lines in parsed.values() for values in lines)
    gathered = Gathered(distinct([names[key] for key in sorted(names)]), masked)
    if keypoints:
        gathered.remarks.append(f"keypoints left out, as {file} names a kpt_shape: the boxes alone are read")
    for path, seen in found.prints.items():
        lines, scale = parsed[path], (seen.shape[1], seen.shape[0])
        boxes = np.array([_box(values) for values in lines]).reshape(-1, 4) * (*scale, *scale)
        of = [places[int(values[0])] for values in lines]
        crowd, outlines = [False] * len(lines), [_outline(values, scale) for values in lines]
        gathered.add(path, parts[path], seen, boxes=boxes, labels=of, crowd=crowd, outlines=outlines)
    return gathered.annotations(root, (*found.skipped, *lost))


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


def _keypoints(file: Path, told: Mapping[str, Any]) -> int:
    """How many numbers of keypoints follow a box; 0: none do."""
    shape = told.get("kpt_shape", [0, 0])
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(size, int) for size in shape)):
        raise DataError(f"{file}: kpt_shape is {shape}; write [points, 3], or 2 where lines do not tell what is seen")
    return int(shape[0] * shape[1])


def _sources(file: Path, told: Mapping[str, Any]) -> list[_Source]:
    """Where the pictures are, training first."""
    root = file.parent.parent if file.parent.name == "labels" else file.parent
    entries = {
        PART_NAMES[key]: value if isinstance(value, list) else [value]
        for key, value in told.items()
        if key in PART_NAMES and value
    }
    if entries:
        order = dict.fromkeys(PART_NAMES.values())
        return [_Source(part, _entry(file, told.get("path"), one)) for part in order for one in entries.get(part, [])]
    images = root / "images"
    homes = [path for path in (images, root) if path.is_dir()]
    parts = {part_of(p.name): p for home in homes for p in sorted(home.iterdir()) if p.is_dir() and part_of(p.name)}
    folders = {part: path / "images" if (path / "images").is_dir() else path for part, path in parts.items()}
    if folders:
        return [_Source(part, path) for part, path in folders.items()]
    if images.is_dir():
        return [_Source("", images)]
    raise DataError(f"{root}: holds no folder 'images'; {_LAYOUT}")


def _entry(file: Path, base: Any, value: Any) -> Path:
    """The folder, or the text file, that an entry of a .yaml file means.

    Its own `path` is often that of another machine, and entries of Roboflow begin with `../` too much.
    """
    if not isinstance(value, str):
        raise DataError(
            f"{file}: '{value}' must be a folder of pictures, a text file of their paths, or a list of these"
        )
    bases = [file.parent / str(base), file.parent] if base else [file.parent]
    tried = [home / each for home in bases for each in (value, value.removeprefix("../"))]
    for path in tried:
        if path.is_dir():
            return path / "images" if path.name != "images" and (path / "images").is_dir() else path
        if path.is_file() and path.suffix == ".txt":
            return path
    raise DataError(f"{file}: there is no folder or text file {tried[0]}; mend the path")


def _listed(file: Path) -> list[Path]:
    """The pictures that a text file names; relative paths begin at its folder."""
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    paths = [file.parent / line.strip() for line in lines if line.strip()]
    if not paths:
        raise DataError(f"{file}: names no pictures; write a path a line")
    return paths


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


def _lines(file: Path, keypoints: int) -> list[NDArray[np.float64]]:
    """The numbers of each line; of a pose those of its box."""
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
        polygon = not keypoints and len(values) >= 7 and len(values) % 2 == 1
        if not (len(values) in (5, 5 + keypoints) or polygon) or not np.isfinite(values).all() or values[0] % 1:
            more = f", and {keypoints} numbers of keypoints" if keypoints else ""
            poses = "; of poses, give the .yaml file a kpt_shape" if len(values) > 7 and not keypoints else ""
            raise DataError(
                f"{file}, line {number}: '{line.strip()[:60]}' is not: class, centre x, centre y, width, height{more}{poses}"
            )
        values = values if polygon else values[:5]
        if np.abs(values[1:]).max() >= FAR:
            poses = ", or keypoints, of which a kpt_shape in the .yaml file tells" if polygon else ""
            raise DataError(
                f"{file}, line {number}: {values[1:].max():g} is no fraction of the picture; are these pixels{poses}?"
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
