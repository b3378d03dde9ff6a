"""Annotated pictures for a model whose labels are known already: its boxes or masks, by the places of their names in the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeattn.datasets.annotated import IGNORE, Annotated, Annotations, ClassMap, Masks
from edgeattn.datasets.kinds import read_annotations
from edgeattn.errors import DataError
from edgeattn.spec import Spec

PARTS = ("test", "validation")
"""What of a set that names its parts a model is measured on, the first that there is."""
_NAMED = 8


def annotated_pictures(
    data: Path, spec: Spec, *, skip_missing: bool = False, progress: Callable[[int, int], None] | None = None
) -> Annotations:
    """The annotated pictures of any form that `kinds` reads, with the labels of the model that is measured on them.

    Raises:
        DataError: see `kinds.read_annotations`; a class that is no label of the model, or nothing that its task asks for.
    """
    found = read_annotations(data, skip_missing=skip_missing, progress=progress)
    if spec.task == "detect":
        return replace(found, names=spec.labels, pictures=_boxes(found, spec))
    return replace(found, map_names=spec.labels, pictures=_masks(found, spec))


def held_out(found: Annotations) -> tuple[Annotated, ...]:
    """The pictures to measure on: those of the set's test part, else of its validation part, else all."""
    for part in PARTS:
        if some := tuple(one for one in found.pictures if one.part == part):
            return some
    return found.pictures


def _boxes(found: Annotations, spec: Spec) -> tuple[Annotated, ...]:
    occur = {label for one in found.pictures for label in one.labels.tolist()}
    if not occur:
        raise DataError(
            f"{found.root} holds no boxes, and a detector is measured by boxes; give COCO or YOLO labels, or pictures alone"
        )
    places = [spec.labels.index(name) if name in spec.labels else -1 for name in found.names]
    if strange := [name for i, name in enumerate(found.names) if i in occur and places[i] < 0]:
        raise DataError(_strange(found.root, strange, spec))
    of = np.array(places)
    return tuple(replace(one, labels=of[one.labels]) for one in found.pictures)


def _masks(found: Annotations, spec: Spec) -> tuple[Annotated, ...]:
    if not found.map_names:
        raise DataError(f"{found.root} holds no masks, and a segmenter is measured by masks; give some, or outlines")
    strange = [name for name in found.map_names if name not in spec.labels]
    if len(strange) == len(found.map_names):
        raise DataError(_strange(found.root, strange, spec))
    return tuple(
        replace(one, masks=one.masks and _Renamed(one.masks, found.map_names, spec, found.root))
        for one in found.pictures
    )


def _strange(root: Path, names: list[str], spec: Spec) -> str:
    return f"{root} has the class {_some(names)}, which is no label of the bundle; labels: {_some(spec.labels)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


@dataclass(frozen=True)
class _Renamed:
    """Masks whose classes are places in the model's labels."""

    masks: Masks
    names: tuple[str, ...]
    spec: Spec
    root: Path

    def class_map(self) -> ClassMap:
        """As `Masks.class_map`.

        Raises:
            DataError: it shows a class that is no label.
        """
        classes = self.masks.class_map()
        strange = [
            self.names[i] for i in np.unique(classes[classes != IGNORE]) if self.names[i] not in self.spec.labels
        ]
        if strange:
            raise DataError(_strange(self.root, strange, self.spec))
        of = np.full(IGNORE + 1, IGNORE, np.uint8)
        for i, name in enumerate(self.names):
            if name in self.spec.labels:
                of[i] = self.spec.labels.index(name)
        return of[classes]
