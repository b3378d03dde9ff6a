"""`edgeattn verify` and `edgeattn info` as they are typed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import typer
from typer.testing import CliRunner, Result

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle, write
from edgeattn.cli.info import info
from edgeattn.cli.verify import verify
from edgeattn.errors import BundleError, DataError, NameNotFoundError
from edgeattn.spec import Rejection

app = typer.Typer()
app.command()(verify)
app.command()(info)


def typed(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for i, (picture, label) in enumerate(tiny.pictures(300, seed=7)):
        (root / tiny.LABELS[label]).mkdir(exist_ok=True)
        cv2.imwrite(str(root / tiny.LABELS[label] / f"{i}.png"), picture)
    (root / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    return root


def test_sound_artefacts_pass_with_exit_0(tiny_int8_bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    result = typed("verify", tiny_int8_bundle.path, "--data", folder, "--threads", "1", "--json", tmp_path / "v.json")
    assert result.exit_code == 0, result.output
    assert "300 pictures of" in result.output
    assert result.output.count("passed") == 4
    assert "broken.jpg: the file is cut off" in result.output
    payload = json.loads((tmp_path / "v.json").read_text())
    assert payload["schema"] == "edgeattn.verify/1"
    assert [row["top1"] for row in payload["results"]] == [1.0] * 4
    assert payload["skipped"][0]["path"].endswith("broken.jpg")
    assert payload["environment"]["cpu"]


def test_a_spoilt_file_fails_with_exit_1_and_says_which_works(
    tiny_int8_bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    held: dict[str, Path | bytes] = {name: tiny_int8_bundle.path / name for name in tiny_int8_bundle.sha256}
    held["int8.onnx"] = tiny.spoilt_int8_model()
    bundle = write(replace(tiny_int8_bundle, path=tmp_path / "spoilt.edgeattn"), held)
    result = typed("verify", bundle.path, "--data", folder, "--json", tmp_path / "v.json")
    assert result.exit_code == 1
    assert "onnxruntime int8 failed: it loses 66.7 points of top-1, 1.0 are allowed; this one works: " in result.output
    assert f"edgeattn run {bundle.path} --engine onnxruntime --precision float" in result.output
    flips = json.loads((tmp_path / "v.json").read_text())["results"][2]["flips"]
    assert len(flips) == 200
    assert all(Path(flip).is_file() for flip in flips)
    assert "and 195 more" in result.output


def test_without_pictures_it_cannot_tell_with_exit_3(tiny_int8_bundle: Bundle) -> None:
    result = typed("verify", tiny_int8_bundle.path)
    assert result.exit_code == 3
    assert "golden inputs alone" in result.output
    assert "onnxruntime int8 cannot tell (golden): about 25 pictures would tell" in result.output
    assert typed("verify", tiny_int8_bundle.path, "--precision", "float").exit_code == 0


def test_a_folder_of_pictures_without_classes_is_judged_by_agreement(tiny_int8_bundle: Bundle, folder: Path) -> None:
    result = typed("verify", tiny_int8_bundle.path, "--data", folder / "green", "--engine", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert "100 pictures of" in result.output


def test_a_folder_that_is_no_label_is_named_with_both_lists(
    tiny_int8_bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    for name in ("red", "violet"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"folder 'violet'.*folders: red, violet; labels: red, green, blue"):
        typed("verify", tiny_int8_bundle.path, "--data", tmp_path)


@pytest.mark.parametrize("name", ["none", "nothing here"])
def test_pictures_of_none_of_the_labels(tmp_path: Path, name: str) -> None:
    spec = replace(tiny.SPEC, rejection=Rejection(0.5, label="nothing here"))
    bundle = tiny.bundle(tmp_path / "x.edgeattn", spec=spec)
    (tmp_path / "data" / name).mkdir(parents=True)
    for i in range(3):
        cv2.imwrite(str(tmp_path / "data" / name / f"{i}.png"), np.full((40, 40, 3), 100 + i, np.uint8))
    result = typed("verify", bundle.path, "--data", tmp_path / "data", "--json", tmp_path / "v.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "v.json").read_text())["results"][0]["top1"] == 1.0


def test_bad_input_is_said_in_one_line(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        typed("verify", tiny_int8_bundle.path, "--data", tmp_path / "gone")
    with pytest.raises(DataError, match="holds no pictures"):
        typed("verify", tiny_int8_bundle.path, "--data", tmp_path)
    for part in ("train", "test"):
        (tmp_path / part / "red").mkdir(parents=True)
    with pytest.raises(DataError, match=r"is split into parts; give one of them: --data .*/te?"):
        typed("verify", tiny_int8_bundle.path, "--data", tmp_path)
    (tmp_path / "train" / "red" / "bad.jpg").write_bytes(b"bad")
    with pytest.raises(DataError, match="none of the 1 pictures can be read"):
        typed("verify", tiny_int8_bundle.path, "--data", tmp_path / "train")
    with pytest.raises(NameNotFoundError, match="no engine is named 'onnx'"):
        typed("verify", tiny_int8_bundle.path, "--engine", "onnx")


def test_info_says_what_is_in_a_bundle(tiny_int8_bundle: Bundle, tmp_path: Path) -> None:
    provenance = {"licence": "Apache-2.0", "attributions": [{"name": "photos", "licence": "CC0", "source": "a museum"}]}
    spec = replace(tiny.SPEC, rejection=Rejection(0.5))
    held: dict[str, Path | bytes] = {name: tiny_int8_bundle.path / name for name in tiny_int8_bundle.sha256}
    bundle = write(replace(tiny_int8_bundle, path=tmp_path / "x.edgeattn", spec=spec, provenance=provenance), held)
    result = typed("info", bundle.path, "--json", tmp_path / "i.json")
    assert result.exit_code == 0
    for said in (
        "x: classify, 32x32 nhwc_u8",
        "3 labels: red, green, blue",
        "1 attention maps: stages.2.attention (energy)",
        "'none of these' below a probability of 0.50",
        "24 golden inputs",
        "int8.xml",
        "parity passed",
        "licence: Apache-2.0",
        "from photos, CC0, a museum",
    ):
        assert said in result.output
    payload = json.loads((tmp_path / "i.json").read_text())
    assert payload["schema"] == "edgeattn.info/1"
    assert payload["digest"] == bundle.digest()
    sizes = {row["file"]: row["size_bytes"] for row in payload["artefacts"]}
    assert sizes["int8.xml"] == sum((bundle.path / name).stat().st_size for name in ("int8.xml", "int8.bin"))
    assert {row["verdict"] for row in payload["artefacts"]} == {"passed"}


def test_info_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json is missing"):
        typed("info", tmp_path)


def test_masks_tell_how_well_it_looks(tiny_int8_bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.png"):
        mask = np.zeros(cv2.imread(str(path)).shape[:2], np.uint8)
        mask[: len(mask) // 2] = 255
        (tmp_path / "masks" / path.parent.name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "masks" / path.parent.name / path.name), mask)
    result = typed(
        "verify", tiny_int8_bundle.path, "--data", folder, "--masks", tmp_path / "masks", "--json", tmp_path / "v.json"
    )
    assert result.exit_code == 0, result.output
    assert "does not tell where to look on 1 of the pictures" in result.output  # the broken one
    assert result.output.count("% inside, points inside on") == 4
    for row in json.loads((tmp_path / "v.json").read_text())["results"]:
        assert 0.0 <= row["looking"]["energy_inside"] <= 1.0
        assert row["macro"]["f1"] == 1.0
        assert [score["recall"] for score in row["classes"]] == [1.0] * len(tiny.LABELS)
        assert 0.0 <= row["calibration_error"] <= 1.0
        assert "answers" not in row
    with pytest.raises(DataError, match=r"--masks needs pictures"):
        typed("verify", tiny_int8_bundle.path, "--masks", tmp_path)


def test_the_report_shows_the_worst_first(tiny_int8_bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "pictures" / tiny.LABELS[0]
    for label in tiny.LABELS[1:]:
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for path in sorted((folder / label).glob("*.png"))[:20]:
            (tmp_path / "pictures" / label / path.name).write_bytes(path.read_bytes())
    wrong.mkdir()
    stray = sorted((folder / tiny.LABELS[1]).glob("*.png"))[30]
    (wrong / "stray.png").write_bytes(stray.read_bytes())
    html = tmp_path / "report.html"
    result = typed("verify", tiny_int8_bundle.path, "--data", tmp_path / "pictures", "--html", html)
    assert f"report: {html}" in result.output
    page = html.read_text()
    assert "Worst first: 1 wrong of" in page
    first = page.split("<figcaption>")[1]
    assert "stray.png" in first
    assert 'class="wrong"' in first
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    for part in ("Calibration", "Confusion", "Class by class", "Insertion", "Deletion"):
        assert f"<h2>{part}</h2>" in page
    assert page.count("data:image/jpeg;base64,") == 2 * min(24, 1 + 20 * (len(tiny.LABELS) - 1))
