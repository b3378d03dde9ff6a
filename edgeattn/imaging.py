"""Pictures and frames: reading them, and the only preprocessing outside the model.

Pictures are (H, W, 3) bytes in BGR everywhere in edgeattn, as OpenCV has them; `prepare` alone turns them to RGB.
Training's evaluation transform is `prepare` too, so that what was trained is what runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.errors import DataError, PictureError
from edgeattn.spec import InputSpec

Picture = NDArray[np.uint8]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
"""Endings of picture files that are read."""
BARS = (114, 114, 114)
"""Grey of the bars beside a letterboxed frame, as ultralytics trains with."""
HEIC_SUFFIXES = frozenset({".heic", ".heif"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})


def read_picture(path: str | Path) -> Picture:
    """Read a picture as (H, W, 3) BGR bytes: upright by its EXIF turn, grey, CMYK, alpha and 16 bits reduced to that.

    Transparent parts are shown on white, except in a picture that EXIF turns.

    Raises:
        PictureError: the file is missing, empty, cut off, of another format, or HEIC.
    """
    path = Path(path)
    try:
        data = path.read_bytes()  # imread fails on non-ASCII paths on some systems
    except OSError as error:
        raise PictureError(f"{path}: cannot be read ({error.strerror})") from error
    return decode_picture(data, str(path))


def decode_picture(data: bytes, name: str) -> Picture:
    """Decode a picture from its bytes, as `read_picture`; `name` is for the message.

    Raises:
        PictureError: the bytes are empty, cut off, of another format, or HEIC.
    """
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        raise PictureError(
            f"{name}: HEIC is not read; turn it into JPEG first, for example: heif-convert IN.heic OUT.jpg"
        )
    if _is_cut_off(data):
        raise PictureError(f"{name}: the file is cut off; copy it again or delete it")
    coded = np.frombuffer(data, np.uint8)
    try:
        picture = cv2.imdecode(coded, cv2.IMREAD_COLOR) if len(coded) else None
        if picture is not None and _may_be_transparent(data):
            picture = _on_white(coded, picture)
    except cv2.error as error:
        raise PictureError(f"{name}: cannot be decoded ({str(error).strip().splitlines()[-1]})") from error
    if picture is None:
        raise PictureError(
            f"{name}: not a picture that can be read (JPEG, PNG, BMP, WebP, TIFF, PNM); convert or delete it"
        )
    return np.asarray(picture, np.uint8)


def _may_be_transparent(data: bytes) -> bool:
    """Whether to look for an alpha channel: that costs a second decoding."""
    if data.startswith(b"\x89PNG"):
        return data[25:26] in (b"\x04", b"\x06") or b"tRNS" in data  # grey or RGB with alpha, or a transparent colour
    return data[8:12] == b"WEBP" or data[:4] in (b"II*\0", b"MM\0*")


def _on_white(coded: NDArray[np.uint8], upright: Picture) -> Picture:
    """Blend a picture, decoded without its alpha channel, with white."""
    unchanged = cv2.imdecode(coded, cv2.IMREAD_UNCHANGED)
    if unchanged is None or unchanged.ndim != 3 or unchanged.shape[2] != 4:
        return upright
    # The alpha channel is as the file has it, not turned upright; to a turned picture it does not fit.
    as_stored = cv2.imdecode(coded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if as_stored is None or not np.array_equal(as_stored, upright):
        return upright
    alpha = unchanged[..., 3:].astype(np.float32) / np.iinfo(unchanged.dtype).max
    return np.asarray(np.rint(upright * alpha + 255.0 * (1.0 - alpha)), np.uint8)


def _is_cut_off(data: bytes) -> bool:
    # OpenCV fills the missing part of a truncated JPEG with grey and says nothing to the caller.
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data
    if not data.startswith(b"\xff\xd8"):
        return False
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":  # over the segments to the start of scan
        filled = data[at + 1 : at + 2] == b"\xff"  # a marker may be preceded by any number of these
        at += 1 if filled else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.find(b"\xff\xd9", at) < 0


def list_pictures(folder: Path) -> list[Path]:
    """All picture files in `folder` and below, sorted, hidden ones and those in hidden folders left out.

    HEIC files are listed too, so that reading names them.
    """
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES | HEIC_SUFFIXES)
    return sorted(
        p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts) and p.is_file()
    )


def crop_box(height: int, width: int, spec: InputSpec) -> tuple[int, int, int, int]:
    """Central crop of the input's aspect ratio: (x, y, crop width, crop height) in pixels of the frame."""
    scale = min(height / spec.height, width / spec.width) * spec.crop
    crop_h, crop_w = max(1, round(spec.height * scale)), max(1, round(spec.width * scale))
    return (width - crop_w) // 2, (height - crop_h) // 2, crop_w, crop_h


def letterbox(height: int, width: int, spec: InputSpec) -> tuple[int, int, int, int]:
    """Where a whole frame comes to lie in the input: (x, y, width, height) in pixels of the input."""
    scale = min(spec.height / height, spec.width / width)
    inner_h, inner_w = max(1, round(height * scale)), max(1, round(width * scale))
    return (spec.width - inner_w) // 2, (spec.height - inner_h) // 2, inner_w, inner_h


def seen_box(height: int, width: int, spec: InputSpec) -> tuple[float, float, float, float]:
    """What the input covers: (x, y, width, height) in pixels of the frame; letterboxed, it reaches beyond the frame."""
    if spec.fit == "crop":
        return crop_box(height, width, spec)
    x, y, w, h = letterbox(height, width, spec)
    across, down = width / w, height / h
    return -x * across, -y * down, spec.width * across, spec.height * down


def resize_crop(picture: Picture, spec: InputSpec) -> Picture:
    """Fit a picture into the input, by `spec.fit`: (H, W, 3) BGR bytes to (spec.height, spec.width, 3) BGR bytes.

    Raises:
        DataError: the picture is not (H, W, 3) bytes.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise DataError(f"a frame must be (height, width, 3) bytes in BGR, not {picture.shape} {picture.dtype}")
    if spec.fit == "letterbox":
        x, y, w, h = letterbox(picture.shape[0], picture.shape[1], spec)
        right, low = spec.width - w - x, spec.height - h - y
        inner = _resized(picture, h, w, spec)
        return np.asarray(cv2.copyMakeBorder(inner, y, low, x, right, cv2.BORDER_CONSTANT, value=BARS), np.uint8)
    x, y, w, h = crop_box(picture.shape[0], picture.shape[1], spec)
    return _resized(picture[y : y + h, x : x + w], spec.height, spec.width, spec)


def _resized(view: Picture, height: int, width: int, spec: InputSpec) -> Picture:
    if view.shape[:2] == (height, width):
        return view
    area = spec.interpolation == "area" or (spec.interpolation == "auto" and view.shape[0] > 2 * height)
    resized = cv2.resize(view, (width, height), interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8)


def to_input(cropped: Picture, spec: InputSpec) -> NDArray[np.generic]:
    """Turn a picture of the input's own size into the model's input: (1, H, W, 3) RGB bytes or (1, 3, H, W) floats."""
    if spec.layout == "nhwc_u8":
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(cropped), cv2.COLOR_BGR2RGB)[None], np.uint8)
    x_13HW = np.empty(spec.shape, np.float32)
    for plane, given, mean, std in zip(x_13HW[0], cv2.split(cropped)[::-1], spec.mean, spec.std, strict=True):
        np.subtract(given, np.float32(mean), out=plane)  # plane by plane: an eighth of the time of all at once
        np.divide(plane, np.float32(std), out=plane)
    return x_13HW


def prepare(picture: Picture, spec: InputSpec) -> NDArray[np.generic]:
    """Turn a frame, (H, W, 3) BGR bytes of any size, into the model's input (shape `spec.shape`).

    Raises:
        DataError: the picture is not (H, W, 3) bytes.
    """
    return to_input(resize_crop(picture, spec), spec)
