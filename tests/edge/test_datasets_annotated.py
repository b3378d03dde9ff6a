from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeattn._cv2 import cv2
from edgeattn.datasets.annotated import IGNORE, Annotations, Outlines, clean_boxes, part_of
from edgeattn.datasets.coco import read_coco
from edgeattn.datasets.kinds import read_annotations, recognise
from edgeattn.datasets.masks import MaskFile, read_masks
from edgeattn.datasets.outlines import draw_outline
from edgeattn.datasets.yolo import read_yolo
from edgeattn.errors import DataError
from edgeattn.evaluation import segment

SQUARE = [2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]
"""A polygon over columns 2 to 7 and rows 3 to 8."""


def save(path: Path, size: tuple[int, int] = (20, 30)) -> Path:
    """A grey picture of (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.full((*size, 3), 90, np.uint8))[1].tobytes())
    return path


def save_mask(path: Path, mask: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, mask)[1].tobytes())
    return path


def coco(*annotations: dict[str, Any], **others: Any) -> dict[str, Any]:
    """Two pictures of 20 x 30, the second without objects, and categories with gaps, out of order."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 30, "height": 20} for i in (7, 9)],
        "categories": [{"id": 90, "name": "brush"}, {"id": 3, "name": "car"}, {"id": 11, "name": "hydrant"}],
        "annotations": [{"id": i, "image_id": 7, "iscrowd": 0} | one for i, one in enumerate(annotations, 1)],
    } | others


def write_coco(root: Path, held: dict[str, Any], *, file: str = "instances_train.json", home: str = "train") -> Path:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(held))
    for image in held["images"]:
        save(root / home / image["file_name"])
    return root


def write_yolo(root: Path, labels: dict[str, str], names: str = "names: [apple, pear]") -> Path:
    root.mkdir(exist_ok=True)
    (root / "data.yaml").write_text(names)
    for stem, text in labels.items():
        part, _, name = stem.rpartition("/")
        save(root / "images" / part / f"{name}.jpg")
        (root / "labels" / part).mkdir(parents=True, exist_ok=True)
        (root / "labels" / f"{stem}.txt").write_text(text, errors="surrogateescape")
    return root


# --- COCO


def test_categories_with_gaps_become_places_and_keep_their_names(tmp_path: Path) -> None:
    held = coco(
        {"category_id": 90, "bbox": [1, 2, 10, 5]},
        {"category_id": 3, "bbox": [0, 0, 30, 20], "iscrowd": 1},
        {"category_id": 90, "bbox": [4.5, 4.5, 2, 2]},
    )
    read = read_coco(write_coco(tmp_path, held))
    first, second = read.pictures
    assert read.names == ("car", "hydrant", "brush")
    np.testing.assert_array_equal(first.boxes, [[1, 2, 11, 7], [0, 0, 30, 20], [4.5, 4.5, 6.5, 6.5]])
    assert first.boxes.dtype == np.float32
    assert first.labels.tolist() == [2, 0, 2]
    assert first.crowd.tolist() == [False, True, False]
    assert read.counts == {"car": 0, "hydrant": 0, "brush": 2}
    assert second.boxes.shape == (0, 4)
    assert (first.part, first.shape, first.path) == ("train", (20, 30), tmp_path / "train" / "7.png")
    assert first.masks is None
    assert read.map_names == ()
    assert read.notes == ()


def test_boxes_are_cut_at_the_edge_or_dropped_and_counted(tmp_path: Path) -> None:
    held = coco(
        {"category_id": 3, "bbox": [-5, 2, 10, 30]},
        {"category_id": 3, "bbox": [20, 10, 10.2, 10]},  # rounded, not wrong
        {"category_id": 3, "bbox": [4, 4, 0, 7]},
        {"category_id": 3, "bbox": [4, 4, 5, -1]},
        {"category_id": 3, "bbox": [40, 4, 5, 5]},
        {"category_id": 11, "bbox": [1, 1, 2, 2]},
    )
    read = read_coco(write_coco(tmp_path, held))
    np.testing.assert_array_equal(read.pictures[0].boxes, [[0, 2, 5, 20], [20, 10, 30, 20], [1, 1, 3, 3]])
    assert read.pictures[0].labels.tolist() == [0, 0, 1]
    assert (read.clipped, read.dropped) == (1, 3)
    assert read.notes[0].startswith("1 box over the edge")
    assert read.notes[1].startswith("3 boxes without area")


@given(arrays.arrays(np.float64, (7, 4), elements=st.floats(-1e4, 1e4)), st.integers(1, 40), st.integers(1, 40))
def test_clean_boxes_lie_in_the_picture_and_are_what_they_were_inside(
    boxes: np.ndarray, height: int, width: int
) -> None:
    clean = clean_boxes(boxes, (height, width))
    assert len(clean.boxes) == clean.kept.sum()
    assert (clean.boxes >= 0).all()
    assert (clean.boxes <= [width, height, width, height]).all()
    again = clean_boxes(clean.boxes[(clean.boxes[:, :2] < clean.boxes[:, 2:]).all(axis=1)], (height, width))
    assert again.clipped == 0
    assert again.kept.all()
    inside = (boxes[clean.kept] >= 0).all() and (boxes[clean.kept] <= [width, height, width, height]).all()
    assert not (inside and clean.clipped)


def test_missing_pictures_are_listed_and_stop_unless_skipped(tmp_path: Path) -> None:
    root = write_coco(tmp_path, coco({"category_id": 3, "bbox": [1, 1, 5, 5]}))
    (root / "train" / "9.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 pictures .*9\.png \(missing\).*--skip-missing"):
        read_coco(root)
    read = read_coco(root, skip_missing=True)
    assert [one.path.name for one in read.pictures] == ["7.png"]
    assert read.skipped == ((root / "train" / "9.png", "missing"),)
    assert "9.png (missing)" in read.notes[-1]
    (root / "train" / "7.png").write_bytes(b"\x89PNG cut")
    with pytest.raises(DataError, match=r"none of its 2 pictures.*7\.png \(the file is cut off"):
        read_coco(root, skip_missing=True)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (coco({"category_id": 4, "bbox": [1, 1, 2, 2]}), r"category ids that it does not list: 4$"),
        (coco({"category_id": 3, "image_id": 8, "bbox": [1, 1, 2, 2]}), r"image ids that it does not list: 8$"),
        (coco({"category_id": 3, "bbox": [1, 1, 2]}), r"annotation 1 needs a bbox"),
        (coco({"category_id": 3}), r"annotation 1 needs a bbox"),
        (coco({"category_id": 3, "bbox": [1, 1, 2, float("nan")]}), r"annotation 1 has the bbox"),
        (coco({"category_id": 3, "bbox": [1, 1, 2, 2], "segmentation": [[1, 2, 3]]}), r"annotation 1: a polygon"),
        (
            coco({"category_id": 3, "bbox": [1, 1, 2, 2], "segmentation": {"size": [20, 30], "counts": [7]}}),
            r"annotation 1: run lengths",
        ),
        (coco(categories=[{"id": 1}]), r"no COCO JSON \(KeyError: 'name'\)"),
        (coco(categories=[]), r"lists no categories"),
        (coco(annotations={}), r"has no list of annotations"),
        (coco(images=[{"id": 7, "file_name": "7.png", "width": 20, "height": 30}]), r"30 x 20, but 20 x 30.*EXIF"),
        (coco(images=[{"id": 7, "file_name": "7.png"}, {"id": 7, "file_name": "8.png"}]), r"1 images have an id"),
    ],
)
def test_coco_that_is_wrong_says_where(tmp_path: Path, held: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_coco(write_coco(tmp_path, held))


@pytest.mark.parametrize(
    ("file", "home"),
    [
        ("instances_train.json", "train"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train.json", "images/train"),
        ("train/_annotations.coco.json", "train"),
        ("train.json", "images"),
        ("train.json", ""),
    ],
)
def test_pictures_are_found_where_people_put_them(tmp_path: Path, file: str, home: str) -> None:
    root = write_coco(tmp_path, coco({"category_id": 3, "bbox": [1, 1, 5, 5]}), file=file, home=home)
    assert recognise(root) == "coco"
    read = read_annotations(root)
    assert {one.path.parent for one in read.pictures} == {tmp_path / home}
    assert {one.part for one in read.pictures} == {"train"}
    assert [one.path for one in read_coco(root / file).pictures] == [one.path for one in read.pictures]


def test_parts_share_their_classes(tmp_path: Path) -> None:
    write_coco(tmp_path, coco({"category_id": 90, "bbox": [1, 1, 5, 5]}))
    few = coco({"category_id": 3, "bbox": [1, 1, 5, 5]}, categories=[{"id": 3, "name": "car"}])
    write_coco(tmp_path, few, file="instances_val.json", home="val")
    read = read_coco(tmp_path)
    assert [(one.part, one.labels.tolist()) for one in read.pictures if len(one.boxes)] == [
        ("train", [2]),
        ("validation", [0]),
    ]
    (tmp_path / "instances_val.json").write_text(json.dumps({**few, "categories": [{"id": 3, "name": "bus"}]}))
    with pytest.raises(DataError, match="category 3 is 'bus', but 'car' in instances_train"):
        read_coco(tmp_path)
    (tmp_path / "instances_val.json").rename(tmp_path / "instances_train2.json")
    with pytest.raises(DataError, match="both train"):
        read_coco(tmp_path)


def test_polygons_and_run_lengths_become_masks(tmp_path: Path) -> None:
    runs = np.zeros((20, 30), np.uint8)
    runs[10:15, 20:25] = 1
    flat = runs.T.ravel()
    counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size])
    held = coco(
        {"category_id": 3, "bbox": [2, 3, 6, 6], "segmentation": [SQUARE]},
        {"category_id": 90, "bbox": [20, 10, 5, 5], "segmentation": {"size": [20, 30], "counts": counts.tolist()}},
        {"category_id": 11, "bbox": [12, 2, 3, 3], "segmentation": []},
        {"category_id": 11, "bbox": [2, 3, 3, 2], "segmentation": [[2, 3, 5, 3, 5, 5, 2, 5]]},
    )
    first, second = read_coco(write_coco(tmp_path, held)).pictures
    expected = np.zeros((20, 30), np.uint8)
    expected[3:9, 2:8], expected[10:15, 20:25], expected[2:5, 12:15], expected[3:5, 2:5] = 1, 3, IGNORE, 2
    assert isinstance(first.masks, Outlines)
    np.testing.assert_array_equal(first.masks.class_map(), expected)
    assert first.masks.instances().sum(axis=(1, 2)).tolist() == [36, 25, 0, 6]
    assert isinstance(second.masks, Outlines)
    assert second.masks.instances().shape == (0, 20, 30)
    assert not second.masks.class_map().any()


def test_polygons_of_fewer_than_three_points_are_dropped_and_counted(tmp_path: Path) -> None:
    held = coco(
        {"category_id": 3, "bbox": [2, 3, 6, 6], "segmentation": [[2, 3, 8, 9], SQUARE, []]},
        {"category_id": 11, "bbox": [12, 2, 3, 3], "segmentation": [[12, 2]]},
    )
    read = read_coco(write_coco(tmp_path, held))
    expected = np.zeros((20, 30), np.uint8)
    expected[3:9, 2:8], expected[2:5, 12:15] = 1, IGNORE  # what has no outline left is known by its box alone
    np.testing.assert_array_equal(read.pictures[0].class_map(), expected)
    assert read.notes == ("3 polygons of fewer than three points, left out",)


def test_a_category_named_background_is_the_background(tmp_path: Path) -> None:
    """Elsewhere class 0 of maps had the name twice, and training ended at the first evaluation."""
    held = coco(
        {"category_id": 3, "bbox": [2, 3, 6, 6], "segmentation": [SQUARE]},
        {"category_id": 11, "bbox": [2, 3, 3, 2], "segmentation": [[2, 3, 5, 3, 5, 5, 2, 5]]},
        categories=[{"id": 3, "name": "car"}, {"id": 11, "name": "background"}, {"id": 90, "name": "brush"}],
    )
    read = read_coco(write_coco(tmp_path, held))
    assert read.names == ("car", "background", "brush")
    assert read.map_names == ("background", "car", "brush")
    assert read.pictures[0].labels.tolist() == [0, 1]
    expected = np.zeros((20, 30), np.uint8)
    expected[3:9, 2:8], expected[3:5, 2:5] = 1, 0
    np.testing.assert_array_equal(read.pictures[0].class_map(), expected)


def test_a_polygon_holds_the_pixels_whose_centres_it_encloses() -> None:
    whole = draw_outline([[-5, -5, 50, -5, 50, 50, -5, 50]], (6, 9))
    assert whole.all()
    triangle = draw_outline([[0, 0, 4, 0, 0, 4]], (4, 4))
    np.testing.assert_array_equal(triangle, np.add.outer(np.arange(4), np.arange(4)) < 3)
    apart = draw_outline([[0, 0, 1, 0, 1, 1, 0, 1], [2, 2, 3, 2, 3, 3, 2, 3]], (4, 4))
    assert np.argwhere(apart).tolist() == [[0, 0], [2, 2]]


# --- YOLO


def test_yolo_boxes_are_in_pixels(tmp_path: Path) -> None:
    root = write_yolo(
        tmp_path,
        {
            "train/a": "1 0.5 0.5 0.2 0.4\n\n0 0.1 0.1 0.1 0.1\n",
            "val/b": "",
            "val/c": "0 1.0 0.5 0.5 0.5\n0 0.5 0.5 0 0.1",
        },
        "names: {0: apple, 1: pear, 7: plum}\nnc: 3",
    )
    assert recognise(root) == "yolo"
    read = read_annotations(root)
    assert read.names == ("apple", "pear", "plum")
    by_name = {one.path.stem: one for one in read.pictures}
    np.testing.assert_allclose(by_name["a"].boxes, [[12, 6, 18, 14], [1.5, 1, 4.5, 3]], atol=1e-5)
    assert by_name["a"].labels.tolist() == [1, 0]
    assert {name: one.part for name, one in by_name.items()} == {"a": "train", "b": "validation", "c": "validation"}
    np.testing.assert_allclose(by_name["c"].boxes, [[22.5, 5, 30, 15]], atol=1e-5)
    assert (read.clipped, read.dropped) == (1, 1)
    assert not len(by_name["b"].boxes)


def test_yolo_polygons_have_boxes_and_masks_and_gaps_are_closed(tmp_path: Path) -> None:
    polygon = " ".join(f"{value / side:.6f}" for value, side in zip(SQUARE, (30, 20) * 4, strict=True))
    root = write_yolo(tmp_path, {"a": f"7 {polygon}", "b": "0 0.5 0.5 0.2 0.2"}, "names: {0: apple, 7: plum}")
    first, second = read_yolo(root).pictures
    np.testing.assert_allclose(first.boxes, [[2, 3, 8, 9]], atol=1e-4)
    assert first.labels.tolist() == [1]
    assert first.masks is not None
    assert second.masks is not None
    assert np.argwhere(first.masks.class_map() == 2).tolist() == [[y, x] for y in range(3, 9) for x in range(2, 8)]
    assert set(np.unique(second.masks.class_map())) == {0, IGNORE}


def test_yolo_layouts_of_others(tmp_path: Path) -> None:
    roboflow = tmp_path / "roboflow"
    for part in ("train", "valid"):
        save(roboflow / part / "images" / "1.jpg")
        (roboflow / part / "labels").mkdir()
        (roboflow / part / "labels" / "1.txt").write_text("0 0.5 0.5 0.5 0.5")
    (roboflow / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\ntest: ''\nnames: ['a']")
    assert {one.part for one in read_annotations(roboflow).pictures} == {"train", "validation"}
    assert {one.part for one in read_annotations(roboflow / "data.yaml").pictures} == {"train", "validation"}
    (roboflow / "data.yaml").write_text("val: train/images\ntrain: train/images\nnames: ['a']")
    assert [one.part for one in read_yolo(roboflow).pictures] == ["train"]
    plain = tmp_path / "plain"
    save(plain / "images" / "1.jpg")
    (plain / "labels").mkdir()
    (plain / "labels" / "1.txt").write_text("1 0.5 0.5 0.5 0.5")
    (plain / "labels" / "classes.txt").write_text("a\nb\n")
    read = read_annotations(plain)
    assert (read.names, [one.labels.tolist() for one in read.pictures]) == (("a", "b"), [[1]])


def test_yolo_parts_may_be_lists_of_folders_and_of_paths(tmp_path: Path) -> None:
    write_yolo(tmp_path, {f"{folder}/{i}": "0 0.5 0.5 0.2 0.2" for folder in ("old", "new", "rest") for i in range(2)})
    (tmp_path / "chosen.txt").write_text(f"./images/rest/0.jpg\n\n{tmp_path / 'images' / 'rest' / '1.jpg'}\n")
    told = "path: .\ntrain: [images/old, images/new]\nval: chosen.txt\nnames: [apple]"
    (tmp_path / "data.yaml").write_text(told)
    assert recognise(tmp_path) == recognise(tmp_path / "data.yaml") == "yolo"
    read = read_annotations(tmp_path)
    assert sorted((one.part, one.path.parent.name) for one in read.pictures) == [
        ("train", "new"), ("train", "new"), ("train", "old"), ("train", "old"),
        ("validation", "rest"), ("validation", "rest"),
    ]  # fmt: skip
    assert all(len(one.boxes) == 1 for one in read.pictures)
    (tmp_path / "chosen.txt").write_text("images/rest/0.jpg\nimages/rest/7.jpg\n")
    with pytest.raises(DataError, match=r"1 of 6 pictures .*7\.jpg \(missing\)"):
        read_yolo(tmp_path)
    assert len(read_yolo(tmp_path, skip_missing=True).pictures) == 5
    (tmp_path / "chosen.txt").write_text("\n")
    with pytest.raises(DataError, match=r"chosen\.txt: names no pictures; write a path a line"):
        read_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: {a: images/old}\nnames: [apple]")
    with pytest.raises(
        DataError, match=r"must be a folder of pictures, a text file of their paths, or a list of these"
    ):
        read_yolo(tmp_path)


def test_of_poses_the_boxes_are_read_and_it_is_said(tmp_path: Path) -> None:
    pose = "0 0.5 0.5 0.2 0.4 0.45 0.4 2 0.55 0.6 1"
    root = write_yolo(tmp_path, {"a": pose}, "names: [person]\nkpt_shape: [2, 3]")
    read = read_yolo(root)
    np.testing.assert_allclose(read.pictures[0].boxes, [[12, 6, 18, 14]], atol=1e-5)
    assert read.map_names == ()
    assert read.notes == (f"keypoints left out, as {root / 'data.yaml'} names a kpt_shape: the boxes alone are read",)
    (root / "labels" / "a.txt").write_text(f"{pose} 0.5")
    with pytest.raises(DataError, match=r"line 1: .*centre x, centre y, width, height, and 6 numbers of keypoints$"):
        read_yolo(root)
    (root / "data.yaml").write_text("names: [person]\nkpt_shape: 17")
    with pytest.raises(DataError, match=r"kpt_shape is 17; write \[points, 3\]"):
        read_yolo(root)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 0.5 0.5 0.5 0.5 0.4 0.4 2 0.6 0.6 2", r"line 1: 2 is no fraction .*keypoints, of which a kpt_shape in"),
        ("0 0.5 0.5 0.5 0.5 0.4 0.4 2", r"line 1: .* is not: .*; of poses, give the \.yaml file a kpt_shape"),
        ("0 0.5 0.5 0.5 0.5\n3 0.5 0.5 0.5 0.5\n5 0.5 0.5 0.5 0.5", r"a\.txt: class 3, 5 is not named in .*data\.yaml"),
        ("0 0.5 0.5 0.5", r"a\.txt, line 1: '0 0.5 0.5 0.5' is not"),
        ("\napple 0.5 0.5 0.5 0.5", r"a\.txt, line 2: 'apple"),
        ("0.5 0.5 0.5 0.5 0.5", r"a\.txt, line 1"),
        ("0 0.5 nan 0.5 0.5", r"a\.txt, line 1"),
        ("0 120 80 30 30", r"a\.txt, line 1: 120 is no fraction"),
        ("\x00\udcff", r"a\.txt, line 1"),
    ],
)
def test_yolo_that_is_wrong_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_yolo(write_yolo(tmp_path, {"a": text}))


def test_yolo_labels_without_picture(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5", "b": "0 0.5 0.5 0.5 0.5"})
    (root / "images" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"1 label files have no picture.*b\.txt.*--skip-missing"):
        read_yolo(root)
    assert read_yolo(root, skip_missing=True).skipped == ((root / "labels" / "b.txt", "no picture"),)
    (root / "data.yaml").write_text("train: elsewhere\nnames: [apple]")
    with pytest.raises(DataError, match=r"there is no folder .*elsewhere"):
        read_yolo(root)


# --- masks

TABLE = "id,name,r,g,b\n0,Sky,128,128,128\n4,Road,128,64,128\n11,Unlabelled,0,0,0\n9,Car,64,0,128\n"


def write_masks(root: Path, mask: np.ndarray, table: str = TABLE, name: str = "classes.csv") -> Path:
    save(root / "train" / "1.jpg")
    save_mask(root / "trainannot" / "1.png", mask)
    (root / name).write_text(table)
    return root


def ids() -> np.ndarray:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:, :], mask[10:, :], mask[15:, :], mask[19, :] = 4, 9, 11, 255
    return mask


EXPECTED = np.repeat([0, 1, 2, IGNORE], 5)[:, None] * np.ones((1, 30), int)


def only(read: Annotations) -> np.ndarray:
    (one,) = read.pictures
    assert isinstance(one.masks, MaskFile)
    return one.masks.class_map()


def test_masks_of_ids_and_of_colours(tmp_path: Path) -> None:
    root = write_masks(tmp_path / "ids", ids())
    assert recognise(root) == "masks"
    read = read_annotations(root)
    assert read.map_names == ("Sky", "Road", "Car")
    assert read.pictures[0].part == "train"
    assert read.pictures[0].boxes.shape == (0, 4)
    assert read.counts == {"Sky": 0, "Road": 0, "Car": 0}
    np.testing.assert_array_equal(only(read), EXPECTED)
    colours = {0: (128, 128, 128), 4: (128, 64, 128), 11: (0, 0, 0), 255: (0, 0, 0), 9: (64, 0, 128)}
    coloured = np.array([colours[i][::-1] for i in ids().ravel()], np.uint8).reshape(20, 30, 3)
    np.testing.assert_array_equal(only(read_masks(write_masks(tmp_path / "colours", coloured))), EXPECTED)
    named = write_masks(tmp_path / "txt", np.dstack([(ids() > 0).astype(np.uint8)] * 3), "a\nb\n", "classes.txt")
    assert read_masks(named).names == ("a", "b")
    assert only(read_masks(named)).sum() == 15 * 30


def test_masks_of_0_and_255_want_a_word_on_what_255_is(tmp_path: Path) -> None:
    """As most tools write two classes; 255 by itself counts as no class, and all would be right everywhere."""
    two = np.where(ids() > 0, 255, 0).astype(np.uint8)
    with pytest.raises(DataError, match="beside 'a' the masks hold only 255, which counts as no class"):
        read_masks(write_masks(tmp_path / "txt", two, "a\nb\n", "classes.txt"))
    told = read_masks(write_masks(tmp_path / "csv", two, "id,name\n0,a\n255,b\n", "classes.csv"))
    assert only(told).sum() == (two > 0).sum()


@pytest.mark.parametrize("depth", [4, 8])
def test_indices_of_a_palette_are_ids(tmp_path: Path, depth: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    indices = np.zeros((20, 30), np.uint8)
    indices[5:], indices[10:, 3:] = 1, 2
    rows = indices if depth == 8 else indices[:, ::2] << 4 | indices[:, 1::2]
    head = struct.pack(">IIBBBBB", 30, 20, depth, 3, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    palette = chunk(b"PLTE", bytes([9, 9, 9, 200, 0, 0, 200, 0, 0]))  # two classes of one colour
    root = write_masks(tmp_path, indices, "a\nb\nc\n", "classes.txt")
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    (root / "trainannot" / "1.png").write_bytes(png)
    np.testing.assert_array_equal(only(read_masks(root)), indices)


def test_masks_with_unknown_ids_are_named(tmp_path: Path) -> None:
    mask = ids()
    mask[0, 0], mask[3, 3] = 7, 200
    root = write_masks(tmp_path, mask)
    with pytest.raises(DataError, match=r"trainannot/1\.png: ids of no class: 7, 200"):
        read_masks(root)
    save_mask(root / "trainannot" / "1.png", np.full((20, 30, 3), (3, 2, 1), np.uint8))
    with pytest.raises(DataError, match=r"1\.png: colours of no class: #010203"):
        read_masks(root)
    (root / "classes.csv").write_text("name\na\nb\n")
    with pytest.raises(DataError, match="is coloured, but the classes have no colours"):
        read_masks(root)
    save_mask(root / "trainannot" / "1.png", np.zeros((10, 15), np.uint8))
    save(root / "train" / "2.jpg")
    save_mask(root / "trainannot" / "2.png", np.full((20, 30), 9, np.uint8))
    with pytest.raises(DataError, match=r"1\.png is 15 x 10, its picture 30 x 20.*1 more masks have faults"):
        read_masks(root)


def test_pictures_without_masks_and_masks_without_pictures(tmp_path: Path) -> None:
    root = write_masks(tmp_path, ids())
    save(root / "train" / "2.jpg")
    save_mask(root / "trainannot" / "3.png", ids())
    with pytest.raises(DataError, match=r"2 files lack.*2\.jpg \(no mask\).*3\.png \(no picture\).*--skip-missing"):
        read_masks(root)
    assert [path.name for path, _ in read_masks(root, skip_missing=True).skipped] == ["2.jpg", "3.png"]


@pytest.mark.parametrize(
    ("pictures", "masks", "part"),
    [
        ("images", "masks", ""),
        ("images/val", "labels/val", "validation"),
        ("test/images", "test/annotations", "test"),
    ],
)
def test_masks_are_found_where_people_put_them(tmp_path: Path, pictures: str, masks: str, part: str) -> None:
    save(tmp_path / pictures / "1.jpg")
    save_mask(tmp_path / masks / "1_L.png", ids())
    (tmp_path / "classes.csv").write_text(TABLE)
    assert recognise(tmp_path) == "masks"
    read = read_masks(tmp_path)
    assert read.pictures[0].part == part
    np.testing.assert_array_equal(only(read), EXPECTED)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("id,title\n0,a\n", "no table"),
        ("id,name\n0,a\n0,b\n", "two classes one id"),
        ("name\nvoid\n", "names 0 classes"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, table: str, said: str) -> None:
    with pytest.raises(DataError, match=rf"classes\.csv: .*{said}"):
        read_masks(write_masks(tmp_path, ids(), table))


# --- kinds


def test_kinds_of_folders(tmp_path: Path) -> None:
    save(tmp_path / "fruit" / "apple" / "1.png")
    save(tmp_path / "fruit" / "pear" / "1.png")
    assert recognise(tmp_path / "fruit") == "classes"
    (tmp_path / "fruit" / "boxes.json").write_text('{"apple/1.png": [[1, 2, 3, 4]]}')
    assert recognise(tmp_path / "fruit") == "classes"
    with pytest.raises(DataError, match="holds class folders, neither boxes nor masks"):
        read_annotations(tmp_path / "fruit")
    with pytest.raises(DataError, match="no such file"):
        recognise(tmp_path / "nowhere")
    (write_masks(tmp_path / "masks", ids()) / "classes.csv").unlink()
    with pytest.raises(DataError, match="has masks beside its pictures, but no classes"):
        recognise(tmp_path / "masks")
    (write_yolo(tmp_path / "yolo", {"a": "0 0.5 0.5 0.5 0.5"}) / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"has images and labels, but no data\.yaml"):
        recognise(tmp_path / "yolo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing that is known"):
        recognise(tmp_path / "empty")


def test_parts_in_names() -> None:
    told = {name: part_of(name) for name in ("instances_val2017", "Training", "test", "trainer", "validation_set", "")}
    assert list(told.values()) == ["validation", "train", "test", "", "validation", ""]


def test_both_sides_ignore_the_same_label() -> None:
    assert segment.IGNORE == IGNORE
