"""Splitting labelled pictures into training, validation and test: seeded, stratified, near-duplicates kept together.

Pictures that look alike (frames of a burst, a copy saved anew) in two parts would make the test flatter the model. Two
pictures are alike when their thumbnails correlate; in photographs of different things of one kind, taken in one place,
nearest neighbours stay below 0.95, while copies that were compressed, scaled or brightened stay above 0.97.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeattn.datasets.annotated import Annotated, Annotations
from edgeattn.datasets.folder import Listing, Sample
from edgeattn.errors import DataError, SpecError

PARTS = ("train", "validation", "test")
ALIKE = (0.96, 0.98, 0.99, 0.995, 0.998, 2.0)
"""Least correlation of near-duplicates; the next is taken where a class would hardly fall apart. The last: copies."""
FEWEST_OF_A_KIND = 9
"""Annotated pictures whose rarest class is in fewer than this are split as one kind with others like them."""
_BLOCK = 2048
_PAIRS_EACH = 40

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Three parts without near-duplicates between them."""

    train: tuple[Sample, ...]
    """Pictures to learn from."""
    validation: tuple[Sample, ...]
    """Pictures for choices."""
    test: tuple[Sample, ...]
    """Pictures for the figure at the end."""
    notes: tuple[str, ...] = ()
    """What the user should know, a line each."""


def split(listing: Listing, *, seed: int = 0, fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)) -> Split:
    """Split class by class into training, validation and test; the same seed gives the same split.

    Parts that the folder holds already are kept; those that are missing are taken from its training part.

    Raises:
        DataError: a class has too few different pictures to be in every part.
        SpecError: the fractions are not three positive numbers that sum to 1.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise SpecError(f"fractions {fractions} must be three positive numbers that sum to 1")
    samples = listing.samples
    if all(sample.part and PARTS.index(sample.part) for sample in samples):
        raise DataError(
            f"{listing.root} holds no picture to learn from: all are of validation or test; add a part train"
        )
    given = np.array([PARTS.index(sample.part) if sample.part else -1 for sample in samples])
    ready = {int(part) for part in given if part >= 0}
    wanted = [part for part in range(3) if part == 0 or part not in ready]
    free = np.flatnonzero(np.isin(given, (-1, 0)))
    placed = given.copy()
    notes: tuple[str, ...] = ()
    if len(wanted) > 1:
        label = np.array([samples[i].label for i in free])
        groups, notes = _groups([samples[i] for i in free], label, listing)
        share = np.array([fractions[part] for part in wanted])
        placed[free] = np.array(wanted)[_assign(groups, label, share / share.sum(), seed)]
    _check_parts(listing, placed)
    if ready:
        notes = (*notes, *_leaks(samples, placed))
    train, validation, test = (tuple(samples[i] for i in np.flatnonzero(placed == part)) for part in range(3))
    return Split(train, validation, test, notes)


@dataclass(frozen=True)
class AnnotatedSplit:
    """As `Split`, of pictures with boxes and masks."""

    train: tuple[Annotated, ...]
    """Pictures to learn from."""
    validation: tuple[Annotated, ...]
    """Pictures for choices."""
    test: tuple[Annotated, ...]
    """Pictures for the figure at the end; none where the data comes with its own validation part and without a test."""
    kinds: Mapping[Path, int]
    """By what each picture was told apart: place in `kind_names`."""
    kind_names: tuple[str, ...]
    """The classes that are the rarest of some picture; `others` where these are few, `nothing` of pictures without."""
    notes: tuple[str, ...] = ()
    """What the user should know, a line each."""


def split_annotated(annotations: Annotations, *, seed: int = 0) -> AnnotatedSplit:
    """Split annotated pictures by the rarest class that each shows, as `split` does by the label.

    Raises:
        DataError: too few different pictures for three parts.
    """
    kinds, names = kinds_of(annotations)
    of = dict(zip([one.path for one in annotations.pictures], kinds, strict=True))
    samples = [
        Sample(one.path, kind, one.part, one.digest, one.thumbnail)
        for one, kind in zip(annotations.pictures, kinds, strict=True)
    ]
    if {"train", "validation"} <= {one.part for one in annotations.pictures}:
        placed = np.array([PARTS.index(one.part or "train") for one in annotations.pictures])
        notes = _leaks(samples, placed)
    else:
        found = split(Listing(annotations.root, names, tuple(samples), ()), seed=seed)
        part_of = {sample.path: part for part, name in enumerate(PARTS) for sample in getattr(found, name)}
        placed, notes = np.array([part_of[one.path] for one in annotations.pictures]), found.notes
    train, validation, test = (
        tuple(annotations.pictures[i] for i in np.flatnonzero(placed == part)) for part in range(3)
    )
    return AnnotatedSplit(train, validation, test, of, names, notes)


def kinds_of(annotations: Annotations) -> tuple[list[int], tuple[str, ...]]:
    """By what each picture is told apart, (n,) places in names."""
    held = [set(one.labels[~one.crowd].tolist()) for one in annotations.pictures]
    shown = Counter(label for labels in held for label in labels)
    names = [
        annotations.names[min(labels, key=lambda label: (shown[label], label))] if labels else "nothing"
        for labels in held
    ]
    counts = Counter(names)
    names = [name if counts[name] >= FEWEST_OF_A_KIND else "others" for name in names]
    if names.count("others") < FEWEST_OF_A_KIND:
        largest = Counter(names).most_common(1)[0][0]
        names = [largest if name == "others" else name for name in names]
    distinct = tuple(sorted(set(names)))
    return [distinct.index(name) for name in names], distinct


def stratified_sample(samples: Sequence[Sample], n: int, seed: int) -> tuple[Sample, ...]:
    """Draw `n` samples at random, every class by its share and at least once where `n` allows; all of them if fewer."""
    label = np.array([sample.label for sample in samples], dtype=np.int64)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(samples))
    classes, counts = np.unique(label, return_counts=True)
    quota = np.minimum(counts * n / max(1, len(samples)), counts)
    taken = np.minimum(np.maximum(np.floor(quota), 1), counts).astype(np.int64)
    fewest = 1 if n >= len(classes) else 0
    while taken.sum() > n:  # the minimum of one overshot
        taken[np.argmax(np.where(taken > fewest, taken - quota, -np.inf))] -= 1
    while taken.sum() < min(n, len(samples)):
        taken[np.argmax(np.where(taken < counts, quota - taken, -np.inf))] += 1
    chosen = [i for c, k in zip(classes, taken, strict=True) for i in order[label[order] == c][:k]]
    return tuple(samples[i] for i in rng.permutation(np.array(chosen, dtype=np.int64)))


def alike(
    samples: Sequence[Sample], least: float, most_pairs: int | None = None
) -> tuple[Integers, NDArray[np.float32]]:
    """Pairs of pictures whose thumbnails correlate by `least` or more: (n, 2) places, i < j, and (n,) correlations.

    Copies (the same bytes) are pairs with correlation 3. Stops early once there are more than `most_pairs`.
    """
    thumbnails = np.stack([np.frombuffer(sample.thumbnail, np.uint8) for sample in samples]).astype(np.float32)
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    thumbnails /= np.maximum(np.linalg.norm(thumbnails, axis=1, keepdims=True), 8.0)  # a flat picture is like no other
    pairs, values = [_copies(samples)], []
    values.append(np.full(len(pairs[0]), 3.0, np.float32))
    count = 0
    for start in range(0, len(samples), _BLOCK):
        correlation = thumbnails[start : start + _BLOCK] @ thumbnails[start:].T
        i, j = np.nonzero(np.triu(correlation >= least, 1))
        pairs.append(np.column_stack([i, j]) + start)
        values.append(correlation[i, j])
        count += len(i)
        if most_pairs is not None and count > most_pairs:
            break
    return np.concatenate(pairs), np.concatenate(values)


def _copies(samples: Sequence[Sample]) -> Integers:
    first: dict[str, int] = {}
    pairs = [(first.setdefault(sample.digest, i), i) for i, sample in enumerate(samples) if sample.digest]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], dtype=np.int64).reshape(-1, 2)


def _components(n: int, pairs: Integers) -> Integers:
    """Number the connected components of n points: (n,) the least point of each one's component."""
    least = np.arange(n)
    while True:
        low = np.minimum(least[pairs[:, 0]], least[pairs[:, 1]])
        new = least.copy()
        for side in (0, 1):
            np.minimum.at(new, least[pairs[:, side]], low)
        new = new[new]
        if np.array_equal(new, least):
            return least
        least = new


def _groups(samples: Sequence[Sample], label: Integers, listing: Listing) -> tuple[Integers, tuple[str, ...]]:
    """Group near-duplicates, more strictly in classes that would hardly fall apart; and what to tell about them."""
    limits = _PAIRS_EACH * len(samples)
    level = np.zeros(len(listing.labels), dtype=np.int64)
    for start, least in enumerate(ALIKE):
        pairs, values = alike(samples, least, limits)
        level[:] = start
        if len(pairs) <= limits:
            break
    strict = np.array(ALIKE)
    while True:
        kept = pairs[values >= strict[level[label[pairs]]].max(axis=1)] if len(pairs) else pairs
        groups = _components(len(samples), kept)
        clotted = [c for c in range(len(level)) if level[c] < len(ALIKE) - 1 and _is_clotted(groups[label == c])]
        if not clotted:
            break
        level[clotted] += 1
    return groups, _notes(samples, label, groups, kept, [listing.labels[c] for c in np.flatnonzero(level)])


def _is_clotted(groups: Integers) -> bool:
    """Whether a class cannot be split well: fewer than three groups, or one with more than half of the pictures."""
    counts = np.unique(groups, return_counts=True)[1]
    return len(groups) >= 3 and (len(counts) < 3 or 2 * counts.max() > len(groups))


def _notes(
    samples: Sequence[Sample], label: Integers, groups: Integers, pairs: Integers, strict: Sequence[str]
) -> tuple[str, ...]:
    notes = []
    together = len(groups) - len(np.unique(groups))
    if together:
        notes.append(f"{together} pictures are near-duplicates of others and stay in the same part as those")
    if strict:
        some = ", ".join(f"'{name}'" for name in strict[:3]) + (
            f" and {len(strict) - 3} more" if len(strict) > 3 else ""
        )
        notes.append(
            f"pictures of {some} look so much alike that only the most similar ones are kept together; "
            "the test may flatter the model: take pictures in other places, too"
        )
    crossing = pairs[label[pairs[:, 0]] != label[pairs[:, 1]]]
    if len(crossing):
        first, second = (samples[i].path for i in crossing[0])
        notes.append(f"{len(crossing)} pairs of pictures look the same but differ in class, as {first} and {second}")
    return tuple(notes)


def _assign(groups: Integers, label: Integers, share: NDArray[np.float64], seed: int) -> Integers:
    """Give every group to a part: (n,) places in `share`. Large groups go first, each to the part that lacks most."""
    rng = np.random.default_rng(seed)
    part = np.full(len(groups), -1)
    classes, counts = np.unique(label, return_counts=True)
    for c in classes[np.argsort(counts, kind="stable")]:
        own = np.flatnonzero(label == c)
        has = np.bincount(part[own][part[own] >= 0], minlength=len(share))
        names, sizes = np.unique(groups[own[part[own] < 0]], return_counts=True)
        shuffled = rng.permutation(len(names))
        order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
        for rank, g in enumerate(order):
            lacking = share * len(own) - has
            if len(order) - rank <= np.count_nonzero(has == 0):  # the last groups go where the class is missing still
                lacking = np.where(has == 0, lacking, -np.inf)
            chosen = int(np.argmax(lacking))
            part[groups == names[g]] = chosen
            has[chosen] += sizes[g]
    return part


def _check_parts(listing: Listing, placed: Integers) -> None:
    label = np.array([sample.label for sample in listing.samples])
    for c, name in enumerate(listing.labels):
        missing = [PARTS[part] for part in range(3) if not np.any((label == c) & (placed == part))]
        if missing:
            raise DataError(
                f"{listing.root}: class '{name}' has {np.count_nonzero(label == c)} pictures, too few different for "
                f"{' and '.join(missing)}; add pictures of it until three at least are no copies of each other"
            )


def _leaks(samples: Sequence[Sample], placed: Integers) -> tuple[str, ...]:
    pairs, _ = alike(samples, ALIKE[1], _PAIRS_EACH * len(samples))
    across = pairs[placed[pairs[:, 0]] != placed[pairs[:, 1]]]
    if not len(across):
        return ()
    first, second = (samples[i].path for i in across[0])
    return (f"{len(across)} pairs of near-duplicates lie in different parts, as {first} and {second}",)
