"""Pictures of all kinds come in as (H, W, 3) BGR bytes or are named; frames become inputs by one rule."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeattn import imaging
from edgeattn._cv2 import cv2
from edgeattn.errors import DataError, EdgeAttnError, PictureError
from edgeattn.imaging import crop_box, decode_picture, list_pictures, prepare, read_picture, resize_crop, to_input
from edgeattn.spec import InputSpec

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (40, 60, 3), np.uint8)
BLUE = (255, 0, 0)
CYAN_CMYK_JPEG = [
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwANCQoLCggNCwoLDg4NDxMgFRMSEhMnHB4XIC4pMTAuKS0sMzpKPjM2RjcsLUBXQUZMTlJT",
    "UjI+WmFaUGBKUVJP/8AAFAgACAAIBEMRAE0RAFkRAEsRAP/EABQAAQAAAAAAAAAAAAAAAAAAAAf/xAAUEAEAAAAAAAAAAAAAAAAA",
    "AAAA/9oADgRDAE0AWQBLAAA/ADAnE4nP/9k=",
]
"""8x8 pixels of pure cyan, as Pillow writes them (base64); OpenCV writes no CMYK."""


def coded(suffix: str, picture: NDArray[np.generic], *options: int) -> bytes:
    done, data = cv2.imencode(suffix, picture, options)
    assert done
    return bytes(data.tobytes())


def exif(orientation: int) -> bytes:
    """The TIFF structure that holds one tag: orientation."""
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def turned_jpeg(picture: NDArray[np.uint8], orientation: int) -> bytes:
    plain = coded(".jpg", picture, cv2.IMWRITE_JPEG_QUALITY, 100)
    return plain[:2] + jpeg_segment(0xE1, b"Exif\0\0" + exif(orientation)) + plain[2:]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks, put in after its header."""
    return data[:33] + b"".join(chunks) + data[33:]


def palette_png(indices: NDArray[np.uint8], colours: bytes, alphas: bytes) -> bytes:
    height, width = indices.shape
    rows = b"".join(b"\0" + row.tobytes() for row in indices)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"PLTE", colours), (b"tRNS", alphas), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_lossless_formats_come_in_as_they_are(suffix: str) -> None:
    np.testing.assert_array_equal(decode_picture(coded(suffix, PICTURE), "x"), PICTURE)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_come_in_close(suffix: str) -> None:
    smooth = cv2.resize(RNG.integers(0, 256, (4, 6, 3), np.uint8), (60, 40), interpolation=cv2.INTER_CUBIC)
    read = decode_picture(coded(suffix, smooth), "x")
    assert read.shape == smooth.shape
    assert np.abs(read.astype(int) - smooth).mean() < 4


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".pgm"])
def test_grey_gets_three_equal_channels(suffix: str) -> None:
    read = decode_picture(coded(suffix, np.full((8, 9), 77, np.uint8)), "x")
    assert read.shape == (8, 9, 3)
    assert (read == 77).all()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_reduced_to_eight(suffix: str, channels: int) -> None:
    deep = (RNG.integers(0, 256, (8, 9, channels)) * 257).astype(np.uint16)
    read = decode_picture(coded(suffix, deep), "x")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, np.broadcast_to(deep // 257, (8, 9, 3)))


@pytest.mark.parametrize(
    ("suffix", "options"), [(".png", ()), (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101)), (".tiff", ())]
)
def test_alpha_is_shown_on_white(suffix: str, options: tuple[int, ...]) -> None:
    picture = np.full((10, 12, 4), (*BLUE, 255), np.uint8)
    picture[:, 4:8, 3] = 0
    picture[:, 8:, 3] = 51  # a fifth
    read = decode_picture(coded(suffix, picture, *options), "x")
    assert (read[:, :4] == BLUE).all()
    assert (read[:, 4:8] == 255).all()
    assert (read[:, 8:] == (255, 204, 204)).all()


def test_sixteen_bit_alpha_is_shown_on_white() -> None:
    picture = np.full((4, 4, 4), 65535, np.uint16)
    picture[..., :3] = 0
    picture[:2, :, 3] = 0
    read = decode_picture(coded(".png", picture), "x")
    assert (read[:2] == 255).all()
    assert (read[2:] == 0).all()


def test_a_transparent_palette_entry_is_shown_on_white() -> None:
    indices = np.array([[0, 1], [1, 0]], np.uint8)
    read = decode_picture(palette_png(indices, bytes([200, 0, 0, 0, 200, 0]), bytes([0, 255])), "x")
    np.testing.assert_array_equal(read, [[[255] * 3, [0, 200, 0]], [[0, 200, 0], [255] * 3]])


def test_cmyk_jpeg_is_read_in_its_colours() -> None:
    read = decode_picture(base64.b64decode("".join(CYAN_CMYK_JPEG)), "x")
    assert read.shape == (8, 8, 3)
    assert np.abs(read.astype(int) - (255, 255, 0)).max() < 12


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda p: p),
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (6, lambda p: np.rot90(p, -1)),
        (8, lambda p: np.rot90(p, 1)),
    ],
)
def test_pictures_turned_by_exif_come_in_upright(orientation: int, turn: object) -> None:
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:16, :16] = 255
    upright = turn(picture)  # type: ignore[operator]
    read = decode_picture(turned_jpeg(picture, orientation), "x")
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).mean() < 2


def test_a_turned_picture_with_alpha_comes_in_upright_and_whole() -> None:
    """Its alpha channel is stored unturned: blending it in would wipe out the wrong corner."""
    picture = np.full((6, 6, 4), 255, np.uint8)
    picture[:3, :3] = (0, 0, 0, 255)
    picture[3:, 3:] = (9, 9, 9, 0)
    blended = picture[..., :3].copy()
    blended[3:, 3:] = 255
    upright = decode_picture(png_with(coded(".png", picture), png_chunk(b"eXIf", exif(1))), "x")
    np.testing.assert_array_equal(upright, blended)
    turned = decode_picture(png_with(coded(".png", picture), png_chunk(b"eXIf", exif(3))), "x")
    # OpenCV before 4.11 does not read EXIF from PNG: there the picture stays as stored.
    assert any(np.array_equal(turned, expected) for expected in (picture[::-1, ::-1, :3], blended))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm"])
@pytest.mark.parametrize("kept", [0.01, 0.3, 0.7, 0.99])
def test_a_cut_off_file_is_refused_by_name(suffix: str, kept: float) -> None:
    data = coded(suffix, RNG.integers(0, 256, (100, 150, 3), np.uint8))
    with pytest.raises(PictureError, match="holiday") as error:
        decode_picture(data[: int(kept * len(data))], "holiday")
    assert "\n" not in str(error.value)


def test_a_cut_off_jpeg_is_found_behind_a_whole_thumbnail() -> None:
    thumbnail = coded(".jpg", np.zeros((8, 8, 3), np.uint8))
    plain = coded(".jpg", RNG.integers(0, 256, (100, 150, 3), np.uint8))
    whole = plain[:2] + jpeg_segment(0xE1, b"Exif\0\0" + exif(1) + thumbnail) + plain[2:]
    assert decode_picture(whole, "x").shape == (100, 150, 3)
    with pytest.raises(PictureError, match="cut off"):
        decode_picture(whole[: len(whole) // 2], "x")


def test_whole_files_with_oddities_are_not_taken_for_cut_off() -> None:
    jpeg, png = coded(".jpg", PICTURE), coded(".png", PICTURE)
    expected = decode_picture(jpeg, "x")
    np.testing.assert_array_equal(decode_picture(jpeg + b"appended" * 99, "x"), expected)
    np.testing.assert_array_equal(decode_picture(jpeg[:2] + b"\xff\xff" + jpeg[2:], "x"), expected)
    np.testing.assert_array_equal(decode_picture(png + b"appended" * 99, "x"), PICTURE)
    progressive = coded(".jpg", PICTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert decode_picture(progressive, "x").shape == PICTURE.shape


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG", b"GIF", b"text", b"\0" * 999])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(PictureError):
        decode_picture(data, "x")


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF0000WEBP", b"II*\0"]))
def test_noise_is_refused_and_nothing_else(noise: bytes, head: bytes) -> None:
    try:
        picture = decode_picture(head + noise, "x")
    except EdgeAttnError:
        return
    assert picture.ndim == 3


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"heis", b"mif1"])
def test_heic_is_named_with_its_remedy(tmp_path: Path, brand: bytes) -> None:
    file = tmp_path / "IMG_0001.HEIC"
    file.write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0" * 100)
    assert list_pictures(tmp_path) == [file]
    with pytest.raises(PictureError, match=r"IMG_0001\.HEIC: HEIC is not read; turn it into JPEG"):
        read_picture(file)


def test_non_ascii_paths_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "Übung 日本 🙂"
    folder.mkdir()
    (folder / "größe.PNG").write_bytes(coded(".png", PICTURE))
    (listed,) = list_pictures(tmp_path)
    np.testing.assert_array_equal(read_picture(listed), PICTURE)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"gone\.jpg: cannot be read \(No such file"):
        read_picture(tmp_path / "gone.jpg")
    with pytest.raises(PictureError, match="cannot be read"):
        read_picture(tmp_path)


def test_listing_leaves_out_what_is_hidden_and_what_is_no_picture(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "a/1.JPEG", "a/.hidden.jpg", ".thumbs/3.jpg", "a/notes.txt", "a/folder.png/4.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in list_pictures(tmp_path)] == [
        "a/1.JPEG",
        "a/folder.png/4.bmp",
        "b/2.jpg",
    ]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(8, 512), st.integers(8, 512), st.floats(0.1, 1.0))
def test_the_crop_lies_inside_is_central_and_of_the_inputs_aspect(
    height: int, width: int, rows: int, columns: int, crop: float
) -> None:
    x, y, w, h = crop_box(height, width, InputSpec(rows, columns, crop=crop))
    assert x >= 0
    assert y >= 0
    assert 1 <= w <= width - x
    assert 1 <= h <= height - y
    assert abs((width - w) - 2 * x) <= 1
    assert abs((height - h) - 2 * y) <= 1
    assert abs(w - h * columns / rows) <= 1 + columns / rows


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (720, 1280), (33, 32), (4000, 30)])
@pytest.mark.parametrize("layout", ["nhwc_u8", "nchw_f32"])
def test_frames_of_any_size_become_inputs(size: tuple[int, int], layout: str) -> None:
    spec = InputSpec(32, 48, layout=layout)  # type: ignore[arg-type]
    image = prepare(RNG.integers(0, 256, (*size, 3), np.uint8), spec)
    assert image.shape == spec.shape
    assert image.dtype == (np.uint8 if layout == "nhwc_u8" else np.float32)
    assert image.flags.c_contiguous


def test_an_input_of_its_own_size_only_changes_the_order_of_channels() -> None:
    picture = RNG.integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(prepare(picture, InputSpec(32, 32))[0], picture[..., ::-1])


def test_floats_are_normalised_per_channel_in_rgb() -> None:
    picture = np.full((32, 32, 3), (10, 20, 30), np.uint8)
    spec = InputSpec(32, 32, layout="nchw_f32", mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    image = prepare(picture, spec)
    for channel, expected in enumerate([(30 - 1) / 1, (20 - 2) / 2, (10 - 3) / 4]):
        assert (image[0, channel] == np.float32(expected)).all()


def test_the_centre_is_what_is_kept() -> None:
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = 255
    assert (prepare(picture, InputSpec(32, 32)) == 255).all()


def test_interpolation_follows_the_spec() -> None:
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::5] = 255
    area = resize_crop(stripes, InputSpec(32, 32, interpolation="area"))
    auto = resize_crop(stripes, InputSpec(32, 32))
    linear = resize_crop(stripes, InputSpec(32, 32, interpolation="linear"))
    np.testing.assert_array_equal(auto, area)
    assert np.ptp(area.astype(int)) <= 1, "averaged: every pixel is grey"
    np.testing.assert_array_equal(
        resize_crop(stripes[:60, :60], InputSpec(32, 32)),
        resize_crop(stripes[:60, :60], InputSpec(32, 32, interpolation="linear")),
    )
    assert not np.array_equal(linear, area)


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_a_frame_of_another_kind_is_refused(frame: NDArray[np.uint8]) -> None:
    with pytest.raises(DataError, match=r"must be \(height, width, 3\) bytes in BGR"):
        prepare(frame, InputSpec(32, 32))


def test_preparing_does_not_touch_the_frame() -> None:
    frame = RNG.integers(0, 256, (32, 32, 3), np.uint8)
    before = frame.copy()
    image = to_input(frame, InputSpec(32, 32))
    image[:] = 0
    np.testing.assert_array_equal(frame, before)
    assert imaging.SUFFIXES.isdisjoint(imaging.HEIC_SUFFIXES)
