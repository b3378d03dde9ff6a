"""Calibration sets: which pictures an int8 model's ranges come from, as a manifest that can be checked and drawn again.

A manifest is TOML: source, licence, seed, the strata with their counts, and the sha256 of every picture. It is a sample:
seeded and stratified by class, never the first N of sorted folders.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeattn.bundle import sha256
from edgeattn.datasets.folder import Sample
from edgeattn.datasets.splits import stratified_sample
from edgeattn.errors import DataError
from edgeattn.imaging import Picture, read_picture

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef, import-not-found, unused-ignore]

PICTURES = 300
"""Pictures that are drawn when nobody says how many."""
SHOWN = 3
"""Most names in a message."""
FEWEST = 32
"""Below this the ranges are guesswork."""
SWAPPED = 6.0
"""Standard errors by which red must differ from blue, the wrong way round, for the channels to be called swapped."""


@dataclass(frozen=True)
class Calibration:
    """A calibration set that was drawn or read."""

    root: Path
    """Folder that the files are relative to."""
    files: tuple[str, ...]
    """Pictures, relative to `root`."""
    digests: tuple[str, ...]
    """sha256 of each picture."""
    strata: dict[str, int]
    """Pictures by class."""
    seed: int
    """Seed of the draw."""
    source: str
    """What the pictures are."""
    licence: str
    """Licence of the pictures, as far as it is known."""

    def __len__(self) -> int:
        return len(self.files)

    def pictures(self) -> list[Picture]:
        """Read the pictures, (H, W, 3) BGR bytes.

        Raises:
            DataError: a picture is missing or is not the one that was listed.
        """
        found = []
        for file, digest in zip(self.files, self.digests, strict=True):
            path = self.root / file
            if not path.is_file():
                raise DataError(
                    f"the calibration set lists {path}, which is missing; draw it anew with: edgeattn quantize BUNDLE --data DIR"
                )
            if sha256(path) != digest:
                raise DataError(
                    f"{path} is not the picture that the calibration set lists (sha256 differs); draw the set anew"
                )
            found.append(read_picture(path))
        return found

    def write(self, path: Path) -> None:
        """Write the manifest."""
        lines = [
            'schema = "edgeattn.calibration/1"',
            f"source = {json.dumps(self.source, ensure_ascii=False)}",
            f"licence = {json.dumps(self.licence, ensure_ascii=False)}",
            f"root = {json.dumps(str(self.root), ensure_ascii=False)}",
            f"seed = {self.seed}",
            "",
            "[strata]",
            *(f"{json.dumps(label, ensure_ascii=False)} = {count}" for label, count in self.strata.items()),
            "",
            "[sha256]",
            *(
                f"{json.dumps(f, ensure_ascii=False)} = {json.dumps(d)}"
                for f, d in zip(self.files, self.digests, strict=True)
            ),
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw(
    samples: Sequence[Sample],
    labels: Sequence[str],
    root: Path,
    *,
    seed: int = 0,
    count: int = PICTURES,
    licence: str = "not stated",
) -> Calibration:
    """Draw a seeded, stratified set from labelled pictures (those of the training split).

    Raises:
        DataError: fewer than `FEWEST` pictures.
    """
    if len(samples) < FEWEST:
        raise DataError(
            f"{len(samples)} pictures are too few to calibrate int8 on ({FEWEST} at least); add pictures to {root}"
        )
    chosen = stratified_sample(samples, min(count, len(samples)), seed)
    strata = Counter(labels[sample.label] for sample in chosen)
    files = tuple(sample.path.relative_to(root).as_posix() for sample in chosen)
    digests = tuple(sha256(sample.path) for sample in chosen)
    return Calibration(
        root.resolve(), files, digests, dict(sorted(strata.items())), seed, f"training split of {root.name}", licence
    )


def read(path: Path) -> Calibration:
    """Read a manifest.

    Raises:
        DataError: the manifest is missing, malformed, or lists too few pictures.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"the calibration manifest {path} cannot be read ({error.strerror}); draw one with --data DIR"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(
            f"the calibration manifest {path} is not valid TOML ({error}); draw it anew with --data DIR"
        ) from error
    if raw.get("schema") != "edgeattn.calibration/1":
        raise DataError(f"{path} has schema {raw.get('schema')!r}; this version reads 'edgeattn.calibration/1'")
    listed: dict[str, str] = raw.get("sha256", {})
    if len(listed) < FEWEST:
        raise DataError(f"{path} lists {len(listed)} pictures; {FEWEST} are the fewest to calibrate int8 on")
    root = (path.parent / raw.get("root", ".")).resolve()
    return Calibration(
        root, tuple(listed), tuple(listed.values()), raw.get("strata", {}), int(raw.get("seed", 0)),
        str(raw.get("source", "")), str(raw.get("licence", "not stated")),
    )  # fmt: skip


def picture_digest(picture: Picture) -> str:
    """sha256 of a picture's size and bytes."""
    return hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()


def check(calibration: Iterable[Picture], measured: Iterable[Picture]) -> list[int]:
    """Refuse pictures that int8's ranges must not be taken from; each is looked at once, and none is kept.

    Returns the places of the different ones in the calibration set: what is there many times would set the ranges alone.

    Args:
        calibration: pictures to calibrate on, (H, W, 3) BGR bytes.
        measured: pictures that the result will be measured on, likewise; what a picture looks like is learnt from them too.

    Raises:
        DataError: something else than (H, W, 3) bytes; fewer than `FEWEST` different pictures; some that are measured on; red
            and blue swapped; thumbnails.
    """
    own, other = _Looks.of(calibration), _Looks.of(measured)
    different: dict[str, int] = {}
    for place, digest in enumerate(own.digests):
        different.setdefault(digest, place)
    if len(different) < FEWEST:
        alike = f", {len(own.digests)} with repetitions," if len(different) < len(own.digests) else ""
        raise DataError(
            f"{len(different)} different pictures{alike} are too few to calibrate int8 on; {FEWEST} are the fewest"
        )
    if shared := different.keys() & other.digests:
        places = [str(place) for place, digest in enumerate(own.digests, 1) if digest in shared]
        raise DataError(
            f"{len(shared)} of the calibration pictures are among those that int8 is measured on, which would flatter it "
            f"(in the order of the set: {some_of(places)}); calibrate on training pictures"
        )
    # Clearly one way here, clearly the other way there, and as far.
    is_clear = own.warmth_is_clear and other.warmth_is_clear
    if is_clear and abs(own.warmth + other.warmth) < abs(other.warmth) / 4:
        raise DataError(
            f"the calibration pictures have {abs(own.warmth):.0f} levels more {_name(own.warmth)}, those that are measured on "
            f"{abs(other.warmth):.0f} more {_name(other.warmth)}: red and blue seem swapped; give (H, W, 3) bytes in BGR"
        )
    if 2 * own.side < other.side:
        raise DataError(
            f"the calibration pictures are {own.side:.0f} pixels high or wide, those that are measured on {other.side:.0f}: "
            "thumbnails have other contrasts; calibrate on pictures as the camera gives them"
        )
    return list(different.values())


@dataclass(frozen=True)
class _Looks:
    """What some pictures look like."""

    digests: list[str]
    """Of each picture."""
    warmths: list[float]
    """How many levels red lies above blue, of each picture."""
    sides: list[int]
    """The shorter side of each picture, in pixels."""

    @classmethod
    def of(cls, pictures: Iterable[Picture]) -> _Looks:
        looks = cls([], [], [])
        for place, picture in enumerate(pictures, 1):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise DataError(f"picture {place} is {picture.dtype} {picture.shape}; give (H, W, 3) bytes in BGR")
            looks.digests.append(picture_digest(picture))
            blue, _, red = picture.mean(axis=(0, 1), dtype=float)
            looks.warmths.append(float(red - blue))
            looks.sides.append(min(picture.shape[:2]))
        return looks

    @property
    def warmth(self) -> float:
        return statistics.fmean(self.warmths)

    @property
    def warmth_is_clear(self) -> bool:
        """Whether it differs from zero by more than `SWAPPED` standard errors."""
        n = len(self.warmths)
        return n > 1 and abs(self.warmth) > SWAPPED * max(1e-6, statistics.stdev(self.warmths) / math.sqrt(n))

    @property
    def side(self) -> float:
        return statistics.median(self.sides)


def some_of(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _name(warmth: float) -> str:
    return "red than blue" if warmth > 0 else "blue than red"


class Reader:
    """Inputs for calibration, as ONNX Runtime's quantizers ask for them."""

    def __init__(self, inputs: Iterable[NDArray[np.generic]], name: str) -> None:
        """Take inputs of the model's shape, and the name of its input."""
        self._inputs, self._name = iter(inputs), name

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        """The next one by the input's name; None after the last."""
        picture = next(self._inputs, None)
        return None if picture is None else {self._name: picture}

    def set_range(self, start_index: int, end_index: int) -> None:
        """Not needed: the set is read whole."""
        raise NotImplementedError("the calibration set is read whole")
