from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeattn._cv2 import cv2
from edgeattn.datasets.annotated import Annotated, Annotations
from edgeattn.datasets.folder import Listing, Sample, scan
from edgeattn.datasets.splits import ALIKE, Split, alike, split, split_annotated, stratified_sample
from edgeattn.errors import DataError, SpecError


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16)).astype(np.uint8)


def sample(label: int, seed: int, thumbnail: np.ndarray | None = None, part: str = "") -> Sample:
    thumbnail = noise(seed) if thumbnail is None else thumbnail
    return Sample(
        Path(f"{part}/{label}/{seed}.png"), label, part, f"digest {seed}", thumbnail.astype(np.uint8).tobytes()
    )


def listing(samples: list[Sample], classes: int) -> Listing:
    return Listing(Path("photos"), tuple(f"class{c}" for c in range(classes)), tuple(samples), ())


def parts(made: Split) -> tuple[tuple[Sample, ...], ...]:
    return made.train, made.validation, made.test


def per_class(made: Split) -> list[Counter[int]]:
    return [Counter(s.label for s in part) for part in parts(made)]


@pytest.mark.parametrize("seed", range(3))
def test_every_picture_is_in_one_part_and_classes_keep_their_share(seed: int) -> None:
    given = listing([sample(c, 1000 * c + i) for c in range(3) for i in range((20, 60, 100)[c])], 3)
    made = split(given, seed=seed)
    assert sorted(s.path for part in parts(made) for s in part) == sorted(s.path for s in given.samples)
    assert per_class(made) == [{0: 14, 1: 42, 2: 70}, {0: 3, 1: 9, 2: 15}, {0: 3, 1: 9, 2: 15}]
    assert made.notes == ()


def test_the_seed_decides() -> None:
    given = listing([sample(c, 1000 * c + i) for c in range(2) for i in range(30)], 2)
    assert split(given, seed=4) == split(given, seed=4)
    assert split(given, seed=4).test != split(given, seed=5).test


@pytest.mark.parametrize("count", range(3, 12))
def test_a_small_class_is_in_every_part(count: int) -> None:
    given = listing([sample(0, i) for i in range(count)] + [sample(1, 100 + i) for i in range(50)], 2)
    assert all(counts[0] >= 1 for counts in per_class(split(given)))


def test_bursts_stay_together() -> None:
    rng = np.random.default_rng(0)
    bursts = {scene: noise(scene).astype(float) for scene in range(24)}
    samples = [
        Sample(Path(f"{scene}-{i}.png"), scene % 2, "", f"{scene} {i}", thumbnail.tobytes())
        for scene, base in bursts.items()
        for i in range(5)
        for thumbnail in [np.clip(base * 0.8 + 20 + rng.normal(0, 6, base.shape), 0, 255).astype(np.uint8)]
    ]
    made = split(listing(samples, 2), seed=1)
    scenes = [{s.path.name.split("-")[0] for s in part} for part in parts(made)]
    assert not any(a & b for a, b in itertools.combinations(scenes, 2))
    assert [len(part) for part in parts(made)] == [80, 20, 20]
    assert "96 pictures are near-duplicates" in made.notes[0]


def test_copies_in_two_classes_are_told_and_stay_together() -> None:
    samples = [sample(c, 1000 * c + i) for c in range(2) for i in range(12)]
    twin = Sample(Path("twin.png"), 1, "", samples[3].digest, samples[3].thumbnail)
    made = split(listing([*samples, twin], 2))
    (home,) = (part for part in parts(made) if twin in part)
    assert samples[3] in home
    assert "differ in class" in made.notes[-1]
    assert "twin.png" in made.notes[-1]


def test_pictures_of_a_fixed_camera_can_be_split_and_a_note_says_so() -> None:
    scene = noise(0).astype(float)
    rng = np.random.default_rng(1)
    fixed = [sample(0, i, np.clip(scene + rng.normal(0, 7, scene.shape), 0, 255)) for i in range(30)]
    made = split(listing([*fixed, *(sample(1, 100 + i) for i in range(30))], 2))
    assert [counts[0] for counts in per_class(made)] == [21, 5, 4]
    assert any("'class0'" in note and "flatter" in note for note in made.notes)


def test_copies_alone_do_not_make_a_class() -> None:
    copies = [Sample(Path(f"{i}.png"), 0, "", "same", noise(0).tobytes()) for i in range(9)]
    with pytest.raises(DataError, match=r"class 'class0' has 9 pictures, too few different.*validation and test"):
        split(listing([*copies, *(sample(1, 50 + i) for i in range(9))], 2))


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_pictures_are_too_few(count: int) -> None:
    given = listing([sample(0, i) for i in range(9)] + [sample(1, 100 + i) for i in range(count)], 2)
    with pytest.raises(DataError, match=r"class 'class1' has .* three at least"):
        split(given)


@pytest.mark.parametrize("fractions", [(0.7, 0.3, 0.0), (0.5, 0.5, 0.5), (0.9, 0.1)])
def test_wrong_fractions(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(SpecError, match="sum to 1"):
        split(listing([sample(c, 10 * c + i) for c in range(2) for i in range(5)], 2), fractions=fractions)


def test_ready_parts_are_kept_and_missing_ones_come_from_training() -> None:
    train = [sample(c, 1000 * c + i, part="train") for c in range(2) for i in range(40)]
    test = [sample(c, 5000 + 1000 * c + i, part="test") for c in range(2) for i in range(7)]
    made = split(listing(train + test, 2))
    assert set(made.test) == set(test)
    assert len(made.validation) == 14  # 0.15 of 0.85
    assert set(made.train) | set(made.validation) == set(train)
    validation = [sample(c, 9000 + 1000 * c + i, part="validation") for c in range(2) for i in range(3)]
    assert set(split(listing(train + test + validation, 2)).train) == set(train)


def test_a_near_duplicate_across_ready_parts_is_told() -> None:
    train = [sample(c, 1000 * c + i, part="train") for c in range(2) for i in range(20)]
    leak = [sample(c, 7000 + c, noise(1000 * c), part="test") for c in range(2)]
    assert "2 pairs of near-duplicates lie in different parts" in split(listing(train + leak, 2)).notes[-1]


def test_a_ready_part_without_a_class_is_refused() -> None:
    train = [sample(c, 1000 * c + i, part="train") for c in range(2) for i in range(20)]
    with pytest.raises(DataError, match=r"class 'class1' .* test"):
        split(listing([*train, sample(0, 7000, part="test")], 2))


def test_copies_that_were_compressed_scaled_or_brightened_are_alike_and_others_are_not(tmp_path: Path) -> None:
    def photo(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        scene = cv2.resize(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
        return np.clip(scene + rng.normal(0, 8, scene.shape), 0, 255).astype(np.uint8)

    def write(name: str, data: np.ndarray, quality: int = 90) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".jpg", data, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())

    for seed in range(10):
        write(f"{'ab'[seed % 2]}/{seed}.jpg", photo(seed))
    write("a/compressed.jpg", photo(0), 40)
    write("a/scaled.jpg", cv2.resize(photo(0), (170, 128), interpolation=cv2.INTER_AREA))
    write("a/brighter.jpg", cv2.convertScaleAbs(photo(0), alpha=1.1, beta=10))
    found = scan(tmp_path)
    pairs, _ = alike(found.samples, ALIKE[0])
    names = {frozenset(found.samples[i].path.stem for i in pair) for pair in pairs}
    assert names == set(map(frozenset, itertools.combinations(("0", "compressed", "scaled", "brighter"), 2)))


def test_flat_pictures_are_not_alike() -> None:
    flat = [sample(0, level, np.full((16, 16), level) + (noise(level) > 250)) for level in range(100, 105)]
    assert len(alike(flat, ALIKE[0])[0]) == 0


def test_a_stratified_sample_has_every_class_by_its_share() -> None:
    samples = [sample(c, 1000 * c + i) for c in range(3) for i in range((10, 90, 900)[c])]
    drawn = stratified_sample(samples, 100, seed=3)
    assert Counter(s.label for s in drawn) == {0: 1, 1: 9, 2: 90}
    assert len(set(drawn)) == 100
    assert drawn == stratified_sample(samples, 100, seed=3)
    assert drawn != stratified_sample(samples, 100, seed=4)
    assert [s.label for s in drawn] != sorted(s.label for s in drawn)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 7, 1000])
def test_a_stratified_sample_has_the_size_that_was_asked_for(n: int) -> None:
    samples = [sample(c, 1000 * c + i) for c in range(3) for i in range((1, 2, 50)[c])]
    drawn = stratified_sample(samples, n, seed=0)
    assert len(drawn) == min(n, 53)
    assert len({s.label for s in drawn}) == min(n, 3)


def annotated(seed: int, labels: Sequence[int], part: str = "") -> Annotated:
    """A picture with an object of each class named, whose thumbnail is noise."""
    thumbnail = noise(seed)
    boxes = np.tile(np.array([[0, 0, 8, 8]], np.float32), (len(labels), 1))
    return Annotated(
        Path(f"{seed}.png"), (16, 16), boxes, np.array(labels, np.int64), np.zeros(len(labels), bool),
        part=part, digest=f"{seed:064x}", thumbnail=thumbnail.astype(np.uint8).tobytes(),
    )  # fmt: skip


def test_annotated_pictures_are_split_by_their_rarest_class() -> None:
    """Common things are in every picture, rare ones in a tenth: those are in every part, and nothing is in two."""
    pictures = [annotated(seed, [0, 0, 1] if seed % 10 == 0 else [0]) for seed in range(200)]
    made = split_annotated(Annotations(Path("all"), ("common", "rare"), tuple(pictures)), seed=1)
    assert made.kind_names == ("common", "rare")
    parts = (made.train, made.validation, made.test)
    assert [len(part) for part in parts] == [140, 30, 30]
    assert [sum(1 in one.labels for one in part) for part in parts] == [14, 3, 3]
    assert {one.path for part in parts for one in part} == {one.path for one in pictures}


def test_a_set_for_validation_alone_is_none_to_learn_from() -> None:
    pictures = tuple(annotated(seed, [0], "validation") for seed in range(20))
    with pytest.raises(DataError, match="holds no picture to learn from"):
        split_annotated(Annotations(Path("all"), ("thing",), pictures))


def test_few_of_a_kind_are_split_together_and_pictures_without_anything_are_a_kind() -> None:
    pictures = [annotated(seed, [seed // 3] if seed < 12 else []) for seed in range(40)]
    made = split_annotated(Annotations(Path("all"), tuple("abcd"), tuple(pictures)))
    assert made.kind_names == ("nothing", "others")
    assert len(made.train) + len(made.validation) + len(made.test) == 40
    few = split_annotated(Annotations(Path("all"), tuple("abcd"), tuple(pictures[9:])))
    assert few.kind_names == ("nothing",), "three others are no kind"


def test_annotated_pictures_with_a_validation_part_keep_all_of_their_training_part() -> None:
    """As COCO and YOLO have it: nothing is taken from training for a test."""
    pictures = [annotated(seed, [0], "train" if seed < 30 else "validation") for seed in range(40)]
    made = split_annotated(Annotations(Path("all"), ("thing",), tuple(pictures)))
    assert [len(part) for part in (made.train, made.validation, made.test)] == [30, 10, 0]
    twin = annotated(3, [0], "validation")
    told = split_annotated(Annotations(Path("all"), ("thing",), (*pictures, twin))).notes
    assert "near-duplicates lie in different parts" in told[0]
