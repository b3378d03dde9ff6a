"""`edgeattn attentions --show` and `edgeattn profile DIR` as they are typed, on a box without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import typer
from typer.testing import CliRunner, Result

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle, extend
from edgeattn.cli.attentions import attentions
from edgeattn.cli.profile import profile
from edgeattn.errors import DataError

app = typer.Typer()
app.command()(attentions)
app.command()(profile)


def typed(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_show_a_picture(tiny_bundle: Bundle, tmp_path: Path) -> None:
    picture, out = tmp_path / "p.png", tmp_path / "maps.png"
    cv2.imwrite(str(picture), tiny.pictures(1)[0][0])
    assert f"wrote {out}" in typed("attentions", "--show", tiny_bundle.path, "--image", picture, "--out", out).output
    drawn = cv2.imread(str(out))
    assert drawn.shape[1] > 2 * 224  # the picture, the mean, one block
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 200


def test_show_a_video_as_a_strip(tiny_bundle: Bundle, tmp_path: Path) -> None:
    video, out = tmp_path / "v.mp4", tmp_path / "strip.png"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for picture, _ in tiny.pictures(20):
        writer.write(picture)
    writer.release()
    typed("attentions", "--show", tiny_bundle.path, "--image", video, "--out", out)
    height, width = cv2.imread(str(out)).shape[:2]
    assert width > 8 * 224
    assert height < width / 2


def test_show_without_a_picture_or_a_folder_to_write_to(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--image"):
        typed("attentions", "--show", tiny_bundle.path)
    picture = tmp_path / "p.png"
    cv2.imwrite(str(picture), tiny.pictures(1)[0][0])
    with pytest.raises(DataError, match="not written"):
        typed("attentions", "--show", tiny_bundle.path, "--image", picture, "--out", tmp_path / "no" / "such.png")


def test_profile_prices_a_folder_of_bundles(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    folder, report = tmp_path / "zoo", tmp_path / "prices.json"
    for name in ("none", "se"):
        extend(tiny_int8_bundle, (), {}, path=folder / f"{name}.edgeattn")
    printed = typed("profile", folder, "--json", report).output
    told = json.loads(report.read_text())
    assert told["schema"] == "edgeattn.prices/1"
    assert [p["mechanism"] for p in told["prices"]] == ["none", "none", "se", "se"]
    assert "int8/float" in printed
    assert "prices" in printed
