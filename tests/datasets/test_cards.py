from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgeattn._cv2 import cv2
from edgeattn.datasets import backgrounds, painting
from edgeattn.datasets.backgrounds import (
    PARTS,
    PHOTOGRAPHS,
    Part,
    photographs,
    random_background,
    read_packaged,
    texture,
)
from edgeattn.datasets.cards import Cards, attributions, write_folder, write_video
from edgeattn.datasets.folder import scan
from edgeattn.errors import DataError, NameNotFoundError


def test_a_sample_depends_on_seed_part_and_index_alone() -> None:
    cards = Cards("train", seed=3)
    first = cards.sample(17)
    cards.sample(4)
    again = Cards("train", seed=3).sample(17)
    assert np.array_equal(first.picture, again.picture)
    assert np.array_equal(first.mask, again.mask)
    assert first.box == again.box
    others = (Cards("train", seed=4).sample(17), Cards("test", seed=3).sample(17), cards.sample(27))
    assert not any(np.array_equal(first.picture, other.picture) for other in others)


@pytest.mark.parametrize("size", [48, 96, 160])
@pytest.mark.parametrize("part", PARTS)
def test_samples_hold_a_card_where_box_and_mask_say(part: Part, size: int) -> None:
    cards = Cards(part, size=size)
    for index in range(40):
        sample = cards.sample(index)
        assert sample.picture.shape == (size, size, 3)
        assert sample.picture.dtype == np.uint8
        assert sample.label == index % 10
        x0, y0, x1, y1 = sample.box
        assert 0 <= x0 < x1 <= size
        assert 0 <= y0 < y1 <= size
        assert y1 - y0 >= 0.35 * size
        rows, columns = np.nonzero(sample.mask)
        assert x0 - 1.5 <= columns.min() <= columns.max() <= x1 + 1.5
        assert y0 - 1.5 <= rows.min() <= rows.max() <= y1 + 1.5
        assert sample.mask.sum() >= 0.4 * (x1 - x0) * (y1 - y0)  # turned, and up to 15 % covered
        assert sample.picture[sample.mask].std() > 12  # ink on paper


def test_what_covers_a_card_hides_little_of_it() -> None:
    rng, hidden = np.random.default_rng(0), []
    light = painting.Light(np.ones((200, 200), np.float32), np.ones((200, 200), np.float32))
    pose = painting.scaled(painting.hold(0.0, (0.0, 0.0)), 150.0, np.array([100.0, 100.0]))
    for _ in range(150):
        card = painting.draw_card("train", 8, rng)
        _, seen = painting.paint(card, pose, np.zeros((200, 200, 3), np.uint8), light)
        share = 1 - seen.sum() / (card.aspect * 150 * 150)
        hidden.append(share)
        assert card.cover is not None or share < 0.03
    assert 0.05 < max(hidden) <= 0.17


def test_digits_of_the_parts_are_disjoint_and_all_are_used() -> None:
    seen = [{glyph.tobytes() for own in painting._glyphs(part) for glyph in own} for part in PARTS]
    assert not any(a & b for a, b in itertools.combinations(seen, 2))
    assert sum(len(own) for part in PARTS for own in painting._glyphs(part)) == 1797
    shares = [sum(len(own) for own in painting._glyphs(part)) / 1797 for part in PARTS]
    assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.02)


def test_photographs_of_the_parts_are_disjoint_and_have_a_licence() -> None:
    digests = {p: hashlib.sha256(read_packaged(p.package, p.file)).hexdigest() for p in PHOTOGRAPHS}
    assert len(set(digests.values())) == len(PHOTOGRAPHS)
    assert sum(len(photographs(part)) for part in PARTS) == len(PHOTOGRAPHS)
    assert all(len(photographs(part)) >= 3 for part in PARTS)
    assert [entry["name"] for entry in attributions()][1:] == [p.file for p in PHOTOGRAPHS]
    assert all(entry["licence"] and entry["credit"] and entry["source"] for entry in attributions())
    assert {entry["name"] for entry in attributions("test")[1:]} == {p.file for p in PHOTOGRAPHS if p.part == "test"}


@pytest.mark.parametrize("size", [33, 96, 224])
def test_backgrounds_are_pictures_and_vary(size: int) -> None:
    rng = np.random.default_rng(0)
    for make in (lambda: random_background(rng, size, "train"), lambda: texture(rng, size)):
        made = [make() for _ in range(12)]
        assert all(picture.shape == (size, size, 3) and picture.dtype == np.uint8 for picture in made)
        assert len({picture.tobytes() for picture in made}) == 12
    assert np.array_equal(
        random_background(np.random.default_rng(5), size, "test"),
        random_background(np.random.default_rng(5), size, "test"),
    )


def test_photographs_are_not_written_to() -> None:
    before = [picture.copy() for picture in photographs("train")]
    cards = Cards("train")
    for index in range(60):
        cards.sample(index)
    assert all(np.array_equal(a, b) for a, b in zip(before, photographs("train"), strict=True))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(NameNotFoundError, match=r"'trian'.*Did you mean 'train'"):
        Cards("trian")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="too small"):
        Cards("train", size=8)
    with pytest.raises(DataError, match=r"away\.png: not in the installed scikit-image"):
        read_packaged(backgrounds._SKIMAGE, "away.png")


def test_a_folder_of_cards_is_read_back(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "cards", "validation", 45, seed=2, size=64)
    listing = scan(root)
    assert listing.labels == tuple("0123456789")
    assert list(listing.counts.values()) == [5, 5, 5, 5, 5, 4, 4, 4, 4, 4]
    picture = cv2.imread(str(root / "7" / "000017.jpg"))
    sample = Cards("validation", seed=2, size=64).sample(17)
    assert np.abs(picture.astype(int) - sample.picture).mean() < 8
    with pytest.raises(DataError, match="cannot be written"):
        write_folder(root / "7" / "000017.jpg", "train", 1)


def test_the_video_agrees_with_its_truth(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cards.mp4", seed=1, seconds=5.0, size=(320, 240))
    truths = [json.loads(line) for line in path.with_suffix(".truth.jsonl").read_text().splitlines()]
    assert [truth["index"] for truth in truths] == list(range(150))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cards.mp4", "cards.truth.jsonl"]
    capture, frames = cv2.VideoCapture(str(path)), []
    assert capture.get(cv2.CAP_PROP_FPS) == 30
    while (read := capture.read())[0]:
        frames.append(read[1])
    capture.release()
    assert len(frames) == 150
    assert frames[0].shape == (240, 320, 3)
    shown = [label for label, _ in itertools.groupby(truth["label"] for truth in truths) if label is not None]
    assert len(shown) == len(set(shown)) == 5  # the last one has just come
    for truth in truths:
        assert (truth["label"] is None) == (truth["box"] is None)
        if truth["box"]:
            x0, y0, x1, y1 = truth["box"]
            assert 40 <= x0 < x1 <= 280  # the central square, which is what a model of a square input sees
            assert 0 <= y0 < y1 <= 240
            assert y1 - y0 >= 0.4 * 240
    assert Counter(truth["label"] is None for truth in truths)[False] >= 90


def test_the_video_moves_smoothly_and_its_seed_decides(tmp_path: Path) -> None:
    truth = {}
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        path = write_video(tmp_path / f"{name}.mp4", seed=seed, seconds=1.2, size=(160, 120))
        truth[name] = path.with_suffix(".truth.jsonl").read_text()
    assert truth["a"] == truth["b"] != truth["c"]
    boxes = np.array([json.loads(line)["box"] for line in truth["a"].splitlines() if json.loads(line)["box"]])
    steps = np.abs(np.diff(boxes, axis=0))
    assert 0 < steps.max() < 4  # of 120 pixels


def test_a_video_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_video(tmp_path / "file" / "cards.mp4", seconds=0.1)
