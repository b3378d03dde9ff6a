from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeattn._cv2 import cv2
from edgeattn.datasets.folder import ready_parts, scan
from edgeattn.errors import DataError, PictureError

HEIC = b"\x00\x00\x00\x18ftypheic" + b"\x00" * 64


def picture(seed: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC))


def save(path: Path, seed: int, size: tuple[int, int] = (40, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, picture(seed, size))[1].tobytes())
    return path


def fill(root: Path, counts: dict[str, int]) -> Path:
    for number, (label, count) in enumerate(counts.items()):
        for i in range(count):
            save(root / label / f"{i}.png", 1000 * number + i)
    return root


def test_labels_follow_in_natural_order_and_samples_in_theirs(tmp_path: Path) -> None:
    listing = scan(fill(tmp_path, {"10": 2, "9": 11, "Äpfel": 1, "birne": 1}))
    assert listing.labels == ("9", "10", "birne", "Äpfel")
    assert listing.counts == {"9": 11, "10": 2, "birne": 1, "Äpfel": 1}
    assert [sample.path.name for sample in listing.samples[:11]] == [f"{i}.png" for i in range(11)]
    assert [sample.label for sample in listing.samples] == [0] * 11 + [1] * 2 + [2, 3]
    assert listing.skipped == ()


def test_folders_below_a_class_belong_to_it_and_hidden_ones_to_nobody(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": 1, "b": 1})
    save(root / "a" / "garden" / "deep" / "x.jpg", 7)
    save(root / "a" / ".thumbnails" / "y.jpg", 8)
    save(root / ".cache" / "z.jpg", 9)
    save(root / "__MACOSX" / "w.jpg", 10)
    (root / "a" / "notes.txt").write_text("no picture")
    listing = scan(root)
    assert listing.labels == ("a", "b")
    assert sorted(sample.path.name for sample in listing.samples) == ["0.png", "0.png", "x.jpg"]


def test_what_cannot_be_read_is_skipped_and_named(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": 3, "b": 2})
    whole = save(tmp_path / "b" / "cut.jpg", 5, (300, 300)).read_bytes()
    (root / "b" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "a" / "phone.heic").write_bytes(HEIC)
    (root / "a" / "empty.png").write_bytes(b"")
    save(root / "beside.png", 6)
    listing = scan(root)
    reasons = {path.name: reason for path, reason in listing.skipped}
    assert len(listing.samples) == 5
    assert "cut off" in reasons["cut.jpg"]
    assert "heif-convert" in reasons["phone.heic"]
    assert "outside the class folders" in reasons["beside.png"]
    assert set(reasons) == {"cut.jpg", "phone.heic", "empty.png", "beside.png"}
    with pytest.raises(PictureError, match=r"phone.heic|empty.png|cut.jpg"):
        scan(root, skip_unreadable=False)


def test_odd_pictures_are_read(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": 1, "b": 1})
    kinds = {
        "grey.png": picture(1)[..., 0],
        "deep.png": picture(2).astype(np.uint16) * 256,
        "alpha.png": cv2.cvtColor(np.asarray(picture(3)), cv2.COLOR_BGR2BGRA),
        "tiny.png": picture(4)[:1, :1],
        "ümläut 猫.jpg": picture(5),
    }
    for name, data in kinds.items():
        (root / "a" / name).write_bytes(cv2.imencode(Path(name).suffix, data)[1].tobytes())
    listing = scan(root)
    assert {sample.path.name for sample in listing.samples} == {"0.png", *kinds}
    assert all(len(sample.thumbnail) == 256 and len(sample.digest) == 64 for sample in listing.samples)


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    scan(fill(tmp_path, {"a": 2, "b": 3}), progress=lambda done, of: seen.append((done, of)))
    assert seen == [(i, 5) for i in range(1, 6)]


def bad_folders() -> list[tuple[str, dict[str, bytes | None], str]]:
    good, other = (cv2.imencode(".png", picture(i))[1].tobytes() for i in (0, 1))
    return [
        ("nothing in it", {}, "empty"),
        ("no class folders", {"1.png": good, "2.png": other}, "one folder per class"),
        ("one class", {"a/1.png": good, "a/2.png": other}, "one class only"),
        ("empty class", {"a/1.png": good, "b": None}, "class 'b' has no picture"),
        ("class of bad files", {"a/1.png": good, "b/1.png": b"no", "b/2.png": b"no"}, "none of its 2 pictures"),
        ("bad files only", {"a/1.png": b"no", "b/1.png": b"no"}, "none of the 2 pictures"),
        ("HEIC only", {"a/1.heic": HEIC, "b/1.HEIC": HEIC}, "heif-convert"),
        ("folders only", {"a": None, "b": None}, "no picture in the class folders"),
    ]


@pytest.mark.parametrize(
    ("files", "said"), [case[1:] for case in bad_folders()], ids=[case[0] for case in bad_folders()]
)
def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path, files: dict[str, bytes | None], said: str) -> None:
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        scan(tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_and_a_file_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        scan(tmp_path / "away")
    with pytest.raises(DataError, match="not a folder"):
        scan(save(tmp_path / "x.png", 1))


def test_ready_parts_are_recognised(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        fill(tmp_path / part, {"a": 2, "b": 1})
    listing = scan(tmp_path)
    assert listing.labels == ("a", "b")
    assert sorted(sample.part for sample in listing.samples) == ["test"] * 3 + ["train"] * 3 + ["validation"] * 3
    assert {sample.part for sample in listing.samples if "valid" in sample.path.parts} == {"validation"}


def test_classes_that_happen_to_be_named_train_are_classes(tmp_path: Path) -> None:
    root = fill(tmp_path, {"train": 2, "tram": 2, "test": 2})
    assert ready_parts(root) == {}
    assert scan(root).labels == ("test", "train", "tram")


def test_neither_scikit_learn_nor_torch_is_imported() -> None:
    code = (
        "import sys, edgeattn.datasets.folder, edgeattn.datasets.splits, edgeattn.datasets.cards, edgeattn.datasets.kinds;"
        "import edgeattn.evaluation.detect, edgeattn.evaluation.segment;"
        "print(sorted({'torch', 'sklearn', 'skimage', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
