"""What lies behind things: real photographs that come inside Python packages, and rendered textures.

The photographs of training, validation and test are disjoint. They are files of the installed packages, so that nothing
is downloaded; only those whose licence lets a model trained on them be passed on are used.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np

from edgeattn._cv2 import cv2
from edgeattn.errors import DataError, ExtraMissingError, NameNotFoundError
from edgeattn.imaging import Picture, decode_picture

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

_RAMP = np.arange(256, dtype=np.float32)[:, None]
_SKIMAGE, _SKLEARN = "skimage.data", "sklearn.datasets.images"
_DISTRIBUTION = {_SKIMAGE: "scikit-image", _SKLEARN: "scikit-learn"}


@dataclass(frozen=True)
class Photograph:
    """A photograph inside an installed package."""

    file: str
    """File name inside the package."""
    package: str
    """Python package whose folder holds the file."""
    part: Part
    """The one part that uses it."""
    licence: str
    """As the package states it."""
    credit: str
    """Whom to name."""


PHOTOGRAPHS = (
    Photograph(
        "china.jpg", _SKLEARN, "train", "CC-BY-2.0", "danielbuechele, flickr.com/photos/danielbuechele/6061409035"
    ),
    Photograph("astronaut.png", _SKIMAGE, "train", "public domain", "NASA, Eileen Collins, flic.kr/p/r9qvLn"),
    Photograph("coffee.png", _SKIMAGE, "train", "CC0-1.0", "Rachel Michetti, Pikolo Espresso Bar"),
    Photograph("chelsea.png", _SKIMAGE, "train", "CC0-1.0", "Stefan van der Walt"),
    Photograph("brick.png", _SKIMAGE, "train", "CC0-1.0", "cc0textures.com, Bricks25"),
    Photograph("grass.png", _SKIMAGE, "train", "CC0-1.0", "linolafett, deviantart.com, Grass-01"),
    Photograph("hubble_deep_field.jpg", _SKIMAGE, "train", "public domain", "NASA, HubbleSite"),
    Photograph("camera.png", _SKIMAGE, "validation", "CC0-1.0", "Lav Varshney"),
    Photograph("clock_motion.png", _SKIMAGE, "validation", "public domain", "Stefan van der Walt"),
    Photograph("retina.jpg", _SKIMAGE, "validation", "CC0-1.0", "Mikael Häggström, doi.org/10.15347/wjm/2014.008"),
    Photograph("flower.jpg", _SKLEARN, "test", "CC-BY-2.0", "vultilion, flickr.com/photos/vultilion/6056698931"),
    Photograph("rocket.jpg", _SKIMAGE, "test", "public domain", "SpaceX, flickr.com/photos/spacexphotos/16511594820"),
    Photograph(
        "coins.png", _SKIMAGE, "test", "no known copyright restrictions", "Brooklyn Museum, archives image 51611"
    ),
    Photograph("gravel.png", _SKIMAGE, "test", "CC0-1.0", "cc0textures.com, Gravel04"),
)
"""Licence and credit as scikit-image (docstrings of `skimage.data`) and scikit-learn (README of its pictures) say."""


def check_part(part: str) -> Part:
    """Return `part` if it names one.

    Raises:
        NameNotFoundError: it does not; lists the three.
    """
    for known in PARTS:
        if part == known:
            return known
    raise NameNotFoundError("part", part, PARTS)


def read_packaged(package: str, file: str) -> bytes:
    """Read a data file of an installed package.

    Raises:
        ExtraMissingError: the package is not installed.
        DataError: the installed version does not hold the file.
    """
    try:
        return (importlib.resources.files(package) / file).read_bytes()
    except ModuleNotFoundError as error:
        raise ExtraMissingError(_DISTRIBUTION[package], "train", "the data set 'cards'") from error
    except FileNotFoundError as error:
        wheel = _DISTRIBUTION[package]
        raise DataError(
            f"{package}/{file}: not in the installed {wheel}; install another version of {wheel}"
        ) from error


@cache
def photographs(part: Part) -> tuple[Picture, ...]:
    """The photographs of one part, (H, W, 3) BGR bytes each; read once, not to be written to."""
    chosen = [photo for photo in PHOTOGRAPHS if photo.part == check_part(part)]
    return tuple(decode_picture(read_packaged(photo.package, photo.file), photo.file) for photo in chosen)


@cache
def _pyramids(part: Part) -> tuple[tuple[Picture, ...], ...]:
    # Halved again and again, so that a crop is never shrunk by much more than two: linear resizing does not alias then.
    pyramids = []
    for picture in photographs(part):
        levels = [picture]
        while min(levels[-1].shape[:2]) >= 64:
            levels.append(np.asarray(cv2.pyrDown(levels[-1]), np.uint8))
        pyramids.append(tuple(levels))
    return tuple(pyramids)


def photograph_crop(rng: np.random.Generator, size: tuple[int, int], part: Part) -> Picture:
    """A random crop of a photograph, mirrored and coloured at random: (H, W, 3) BGR bytes for `size` (H, W)."""
    levels = _pyramids(part)[rng.integers(len(_pyramids(part)))]
    height, width = levels[0].shape[:2]
    fit = min(height / size[0], width / size[1]) * rng.uniform(
        0.3, 1.0
    )  # pixels of the photograph per pixel of the crop
    level = min(max(0, int(np.log2(max(fit, 1.0)) + 0.25)), len(levels) - 1)
    picture = levels[level]
    rows = min(picture.shape[0], max(2, int(size[0] * fit / 2**level)))
    columns = min(picture.shape[1], max(2, int(size[1] * fit / 2**level)))
    y, x = rng.integers(picture.shape[0] - rows + 1), rng.integers(picture.shape[1] - columns + 1)
    crop = cv2.resize(picture[y : y + rows, x : x + columns], size[::-1], interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        crop = cv2.flip(crop, 1)
    return recolour(np.asarray(crop, np.uint8), rng)


def recolour(picture: Picture, rng: np.random.Generator) -> Picture:
    """Change brightness, contrast and the balance of colours at random."""
    balance = np.exp(rng.uniform(-0.22, 0.22, 3)).astype(np.float32)
    table = (
        (_RAMP - 110.0) * np.float32(rng.uniform(0.6, 1.15)) * balance + 110.0 + np.float32(rng.uniform(-50.0, 40.0))
    )
    return np.asarray(cv2.LUT(picture, np.clip(table, 0, 255).astype(np.uint8)[:, None, :]), np.uint8)


def random_background(rng: np.random.Generator, size: int, part: Part) -> Picture:
    """A random background, (size, size, 3) BGR bytes: in two of three a crop of a photograph, or a texture.

    Costs about 0.1 ms at 96 x 96.
    """
    if rng.random() < 0.67:
        picture = photograph_crop(rng, (size, size), part)
        if rng.random() < 0.3:  # out of focus
            picture = np.asarray(cv2.blur(picture, (2 * max(1, size // 40) + 1,) * 2), np.uint8)
        return picture
    return texture(rng, size)


def texture(rng: np.random.Generator, size: int) -> Picture:
    """A rendered texture, (size, size, 3) BGR bytes: noise, wood, stripes, checks, gradients or cloth."""
    field = _FIELDS[rng.integers(len(_FIELDS))](rng, size)
    first, second = _two_colours(rng)
    table = (first + (second - first) * (_RAMP / 255.0)).astype(np.uint8)[:, None, :]
    return np.asarray(cv2.LUT(cv2.merge([_bytes(field)] * 3), table), np.uint8)


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    first = np.clip(rng.uniform(20, 230) + rng.uniform(-60, 60, 3), 0, 255).astype(np.float32)
    second = np.clip(first + rng.uniform(-1, 1) * 90 + rng.uniform(-30, 30, 3), 0, 255).astype(np.float32)
    return first, second


Field = np.ndarray  # (size, size) floats, mostly in 0 to 1


def _bytes(field: Field) -> Picture:
    return np.asarray(np.clip(field * 255.0, 0, 255), np.uint8)


def smooth_noise(rng: np.random.Generator, cells: tuple[int, int], size: int) -> Field:
    """Random values on a coarse grid of `cells` (rows, columns), enlarged to (size, size) floats in about 0 to 1."""
    grid = rng.random(cells, dtype=np.float32)
    return np.asarray(cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC))


def _clouds(rng: np.random.Generator, size: int) -> Field:
    cells = int(rng.integers(2, 6))
    coarse, middle = smooth_noise(rng, (cells, cells), size), smooth_noise(rng, (3 * cells, 3 * cells), size)
    return 0.55 * coarse + 0.3 * middle + 0.15 * smooth_noise(rng, (min(size, 9 * cells),) * 2, size)


def _across(rng: np.random.Generator, size: int) -> Field:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle = rng.uniform(0, 2 * np.pi)
    return np.asarray(x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)))


def _wood(rng: np.random.Generator, size: int) -> Field:
    grain = (
        smooth_noise(rng, (3, min(size, 40)), size)
        if rng.random() < 0.5
        else smooth_noise(rng, (min(size, 40), 3), size)
    )
    rings = np.sin(_across(rng, size) * np.float32(rng.uniform(8, 30)) + 5.0 * smooth_noise(rng, (3, 3), size))
    return np.asarray(0.35 + 0.15 * rings + 0.35 * grain)


def _stripes(rng: np.random.Generator, size: int) -> Field:
    wave = np.sin(_across(rng, size) * np.float32(rng.uniform(12, 70)))
    return np.asarray(np.clip(wave * np.float32(rng.uniform(0.6, 4.0)) + 0.5, 0, 1))


def _checks(rng: np.random.Generator, size: int) -> Field:
    first, second = _across(rng, size), _across(rng, size)
    pitch = np.float32(rng.uniform(10, 40))
    return np.asarray(np.clip(np.sin(first * pitch) * np.sin(second * pitch) * 3.0 + 0.5, 0, 1))


def _gradient(rng: np.random.Generator, size: int) -> Field:
    return np.asarray(_across(rng, size) * 0.5 + 0.5 + 0.08 * (smooth_noise(rng, (size, size), size) - 0.5))


def _cloth(rng: np.random.Generator, size: int) -> Field:
    cells = max(8, size // int(rng.integers(1, 4)))
    weave = smooth_noise(rng, (cells, 3), size) + smooth_noise(rng, (3, cells), size)
    return np.asarray(0.15 + 0.35 * weave)


_FIELDS: tuple[Callable[[np.random.Generator, int], Field], ...] = (
    _clouds,
    _wood,
    _stripes,
    _checks,
    _gradient,
    _cloth,
)


def attributions(part: Part | None = None) -> list[dict[str, str]]:
    """Source, licence and credit of every photograph (of one part, or of all), as bundle.json lists them."""
    if part is not None:
        check_part(part)
    return [
        {"name": p.file, "source": _DISTRIBUTION[p.package], "licence": p.licence, "credit": p.credit}
        for p in PHOTOGRAPHS
        if part in (None, p.part)
    ]
