"""Semantic masks: a folder of pictures and one of masks, a pixel of a mask being the id or the colour of its class.

DATA/train/1.jpg  DATA/trainannot/1.png         and so val and test
DATA/images/1.jpg  DATA/masks/1.png             or with parts: DATA/images/train, DATA/masks/train, or DATA/train/images, ...
DATA/classes.csv                                columns name, and as far as needed id, r, g, b; without id the line counts
DATA/classes.txt                                instead: a name a line, ids from 0

The folder of masks may be named masks, labels, annotations or mask; a mask like its picture, also with _L, _mask or _gt
behind. Of a PNG with a palette the indices are the ids, unless the table has colours. A class named unlabelled, void or
ignore, and id 255, count neither as right nor as wrong.
"""

from __future__ import annotations

import csv
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.datasets.annotated import IGNORE, Annotated, Annotations, ClassMap, listed, part_of, read_pictures
from edgeattn.datasets.labelled import distinct
from edgeattn.errors import DataError
from edgeattn.imaging import list_pictures

IGNORED = frozenset({"unlabelled", "unlabeled", "void", "ignore", "ignored"})
"""Names, in lower case, of classes that do not count."""
TABLES = ("classes.csv", "class_dict.csv", "classes.txt")
"""Files that name the classes, in the order in which they are looked for."""
_FOLDERS = ("masks", "labels", "annotations", "mask")
_ENDINGS = ("", "_L", "_mask", "_gt")
_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
_LAYOUT = "put pictures into DATA/images, PNG masks of the same names into DATA/masks, and names into DATA/classes.csv"


@dataclass(frozen=True)
class ClassTable:
    """What the pixels of masks mean."""

    names: tuple[str, ...]
    """Names of the classes that count, without gaps."""
    ids: Mapping[int, int]
    """Class of every id in a mask: a place in `names`, or IGNORE."""
    colours: Mapping[int, int]
    """The same of every colour, written as 0xRRGGBB; empty where masks hold ids."""


@dataclass(frozen=True)
class MaskFile:
    """The mask of one picture, read when asked."""

    path: Path
    """Where it lies."""
    shape: tuple[int, int]
    """Height and width of its picture in pixels."""
    table: ClassTable
    """What its pixels mean."""

    def class_map(self) -> ClassMap:
        """The class of every pixel, (H, W): a place in the table's names, or IGNORE.

        Raises:
            DataError: it cannot be read, is of another size than its picture, or holds ids or colours of no class.
        """
        codes, known = self._codes()
        keys = np.array(sorted(known))
        place = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
        unknown = keys[place] != codes
        if unknown.any():
            raise DataError(f"{self.path}: {self._unknown(np.unique(codes[unknown]), known is self.table.colours)}")
        return np.array([known[key] for key in keys.tolist()], np.uint8)[place]

    def _codes(self) -> tuple[NDArray[np.integer], Mapping[int, int]]:
        try:
            data = self.path.read_bytes()
            indexed = not self.table.colours and data.startswith(b"\x89PNG") and data[25:26] == b"\x03"
            mask = _indices(data) if indexed else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except (OSError, cv2.error):
            mask = None
        if mask is None:
            raise DataError(f"{self.path}: cannot be read as a mask; write it again as an 8-bit PNG")
        if mask.shape[:2] != self.shape:
            raise DataError(
                f"{self.path} is {mask.shape[1]} x {mask.shape[0]}, its picture {self.shape[1]} x {self.shape[0]}; "
                "a mask must be of its picture's size"
            )
        if mask.ndim == 2:
            return mask, self.table.ids
        blue, green, red = (mask[..., i].astype(np.int32) for i in range(3))
        if self.table.colours:
            return red << 16 | green << 8 | blue, self.table.colours
        if (red == green).all() and (red == blue).all():  # ids, written as grey
            return red, self.table.ids
        raise DataError(f"{self.path} is coloured, but the classes have no colours; add columns r, g, b to classes.csv")

    def _unknown(self, values: NDArray[np.integer], coloured: bool) -> str:
        named = [f"#{value:06x}" if coloured else str(value) for value in values.tolist()[:8]]
        more = f" and {len(values) - len(named)} more" if len(values) > len(named) else ""
        kind = "colours" if coloured else "ids"
        return f"{kind} of no class: {', '.join(named)}{more}; name them in the table of classes, or mend the mask"


def _indices(data: bytes) -> NDArray[np.integer] | None:
    """The indices of a PNG with a palette; OpenCV gives its colours only, so the palette is taken out first."""
    kept, at = [data[:8]], 8
    while at < len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : end]
        if kind == b"IHDR":
            body = body[:9] + b"\0" + body[10:]  # grey
        if kind not in (b"PLTE", b"tRNS"):
            kept.append(data[at : at + 4] + kind + body + zlib.crc32(kind + body).to_bytes(4, "big"))
        at = end + 4
    grey = cv2.imdecode(np.frombuffer(b"".join(kept), np.uint8), cv2.IMREAD_UNCHANGED)
    depth = data[24]
    return None if grey is None else np.asarray(grey // (255 // (2**depth - 1)))  # fewer bits are spread over the byte


def table_file(root: Path) -> Path | None:
    """The file that names the classes of masks; None where there is none."""
    return next((root / name for name in TABLES if (root / name).is_file()), None)


def is_masks(root: Path) -> bool:
    """Whether a folder is of this form."""
    return root.is_dir() and table_file(root) is not None and bool(mask_folders(root))


def read_masks(
    root: str | Path, *, skip_missing: bool = False, progress: Callable[[int, int], None] | None = None
) -> Annotations:
    """Read a folder of pictures and masks; every picture and every mask is decoded once. Its pictures have no boxes.

    Args:
        root: the folder.
        skip_missing: leave out pictures that cannot be read, pictures without a mask and masks without a picture.
        progress: called with (pictures read, pictures in all).

    Raises:
        DataError: the folder is not of this form; pictures or masks that are missing, cannot be read or do not fit; masks
            with ids or colours of no class.
    """
    root = Path(root)
    file = table_file(root)
    if file is None:
        raise DataError(f"{root}: {'no file names the classes' if root.is_dir() else 'no such folder'}; {_LAYOUT}")
    table = read_table(file)
    homes = mask_folders(root)
    if not homes:
        raise DataError(f"{root}: holds no folder of pictures with one of masks beside it; {_LAYOUT}")
    masks, parts, lost = {}, {}, []
    for pictures, folder in homes:
        part = next(filter(None, map(part_of, pictures.relative_to(root).parts)), "")
        held = {path.relative_to(folder).with_suffix(""): path for path in list_pictures(folder)}
        for path in list_pictures(pictures):
            stem = path.relative_to(pictures).with_suffix("")
            mask = next((held.pop(n) for end in _ENDINGS if (n := stem.with_name(stem.name + end)) in held), None)
            if mask is None:
                lost.append((path, "no mask"))
            else:
                masks[path], parts[path] = mask, part
        lost += [(path, "no picture") for path in held.values()]
    if lost and not skip_missing:
        raise DataError(
            f"{root}: {len(lost)} files lack their counterpart: {listed(lost)}; add it, or leave them out with --skip-missing"
        )
    found = read_pictures(root, list(masks), skip_missing=skip_missing, progress=progress)
    boxes, labels, crowd = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    records = [
        Annotated(
            path,
            seen.shape,
            boxes,
            labels,
            crowd,
            MaskFile(masks[path], seen.shape, table),
            parts[path],
            seen.digest,
            seen.thumbnail,
        )
        for path, seen in found.prints.items()
    ]
    _check([record.masks for record in records if isinstance(record.masks, MaskFile)])
    return Annotations(root, table.names, tuple(records), (*found.skipped, *lost), map_names=table.names)


def _check(files: Sequence[MaskFile]) -> None:
    def shown(file: MaskFile) -> set[int] | DataError:
        try:
            return set(np.unique(file.class_map()).tolist())
        except DataError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(shown, files))
    faults = [error for error in found if isinstance(error, DataError)]
    if faults:
        more = f" (and {len(faults) - 1} more masks have faults)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]}{more}")
    seen = set().union(*(classes for classes in found if isinstance(classes, set)))
    table = files[0].table if files else None
    if table and len(table.names) > 1 and len(seen) == 2 and IGNORE in seen and table.ids.get(IGNORE) == IGNORE:
        raise DataError(
            f"{files[0].path.parent}: beside '{table.names[min(seen)]}' the masks hold only 255, which counts as no class; if "
            "it is one, say so in classes.csv with columns id and name"
        )


def mask_folders(root: Path) -> list[tuple[Path, Path]]:
    """Folders of pictures, each with its folder of masks."""
    found = []
    for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
        beside = [folder.with_name(f"{folder.name}annot")]
        if "images" in (parts := folder.relative_to(root).parts):
            at = parts.index("images")
            beside += [root.joinpath(*parts[:at], name, *parts[at + 1 :]) for name in _FOLDERS]
        masks = next((path for path in beside if path.is_dir() and _holds(path, _SUFFIXES)), None)
        if masks is not None and _holds(folder, None):
            found.append((folder, masks))
    # a folder that holds parts is not one of pictures itself
    return [(p, m) for p, m in found if not any(p in other.parents for other, _ in found)]


def _holds(folder: Path, suffixes: Sequence[str] | None) -> bool:
    return any(suffixes is None or path.suffix.lower() in suffixes for path in list_pictures(folder))


def read_table(file: Path) -> ClassTable:
    """Read the table of classes.

    Raises:
        DataError: it names no class, names an id or a colour twice, or has a line without a name.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = (
            [{"name": line.strip()} for line in text.splitlines() if line.strip()]
            if file.suffix == ".txt"
            else [
                {(key or "").strip().lower(): value for key, value in row.items()}
                for row in csv.DictReader(text.splitlines())
            ]
        )
        names = [row["name"].strip() for row in rows]
        ids = [int(row.get("id", place)) for place, row in enumerate(rows)]
        coloured = bool(rows) and all(key in rows[0] for key in "rgb")
        colours = [int(row["r"]) << 16 | int(row["g"]) << 8 | int(row["b"]) for row in rows] if coloured else []
    except (OSError, KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(f"{file}: is no table of classes; write columns name, and id, or r, g, b ({error})") from error
    for kind, values in (("id", ids), ("colour", colours)):
        if len(set(values)) < len(values):
            raise DataError(f"{file}: gives two classes one {kind}")
    counting = [name for name in names if name.lower() not in IGNORED]
    if not 0 < len(counting) < IGNORE:
        raise DataError(f"{file}: names {len(counting)} classes; name 1 to {IGNORE - 1}")
    place = iter(range(len(counting)))
    classes = [IGNORE if name.lower() in IGNORED else next(place) for name in names]
    of_id = dict(zip(ids, classes, strict=True))
    return ClassTable(
        distinct(counting), {IGNORE: IGNORE, **of_id}, dict(zip(colours, classes, strict=True)) if coloured else {}
    )
