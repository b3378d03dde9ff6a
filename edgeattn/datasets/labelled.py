"""Pictures for a model whose labels are known already: class folders named after labels, or a table of files.

PHOTOS/apple/1.jpg        the folder's name is one of the labels
images.csv                columns `file` (in folder images/, else beside the table) and `index` (place in the labels) or `label`
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeattn.datasets.folder import Sample, ready_parts
from edgeattn.errors import DataError
from edgeattn.imaging import list_pictures


def class_folders(root: Path) -> list[Path]:
    """The folders in `root` that may be named after labels, sorted."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def labelled_pictures(data: Path, labels: Sequence[str], others: Mapping[str, int] | None = None) -> list[Sample]:
    """The pictures of a folder of class folders or of a table, each with its label's place.

    Args:
        data: the folder, or the `.csv` file.
        labels: names of the classes, in the order of the logits.
        others: further names and what they stand for, as -1 for none of the labels.

    Raises:
        DataError: no such folder or table, nothing in it, or a name or index that is no label.
    """
    places = {**(others or {}), **{label: i for i, label in enumerate(labels)}}
    samples = _table(data, places, len(labels)) if data.suffix == ".csv" else _folders(data, places)
    if not samples:
        raise DataError(f"{data} holds no pictures; give a folder of class folders, or a .csv of file and index")
    return samples


def _folders(root: Path, places: Mapping[str, int]) -> list[Sample]:
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give one that holds class folders, or pictures")
    if parts := ready_parts(root):
        held = " or ".join(str(path) for path in parts.values())
        raise DataError(f"{root} is split into parts; give one of them: --data {held}")
    folders = class_folders(root)
    for folder in folders:
        if folder.name not in places:
            held = ", ".join(f.name for f in folders)
            raise DataError(
                f"{root} has a folder '{folder.name}', which is no label of the bundle; folders: {held}; "
                f"labels: {', '.join(places)}"
            )
    return [Sample(path, places[folder.name]) for folder in folders for path in list_pictures(folder)]


def _table(table: Path, places: Mapping[str, int], count: int) -> list[Sample]:
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a table ({error})") from error
    own = table.with_suffix("")
    root = own if own.is_dir() else table.parent
    samples = []
    for line, row in enumerate(rows, 2):
        file, index, label = row.get("file"), row.get("index"), row.get("label")
        if not file or not (index or label):
            raise DataError(f"{table}, line {line}: each line needs a file, and an index or a label")
        place = places.get(label) if label else int(index) if index and index.isdecimal() else None
        if place is None or place >= count:
            raise DataError(f"{table}, line {line}: '{label or index}' is none of the {count} labels")
        samples.append(Sample(root / file, place))
    return samples


def read_labels(told: str) -> tuple[str, ...]:
    """Labels from a file with a name a line (a table's column `name` or `label`), or from names joined by commas.

    Raises:
        DataError: the file is empty.
    """
    file = Path(told)
    if not file.is_file():
        return tuple(name.strip() for name in told.split(",") if name.strip())
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{file} names no classes; write a name a line")
    if file.suffix != ".csv":
        return tuple(line.strip() for line in lines)
    rows = list(csv.DictReader(lines))
    column = next((name for name in ("label", "name") if name in rows[0]), None)
    if column is None:
        raise DataError(f"{file} has no column 'label' or 'name'")
    return distinct([row[column] for row in rows])


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names, those that occur twice (ImageNet has two cranes) told apart by their place."""
    return tuple(f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names))
