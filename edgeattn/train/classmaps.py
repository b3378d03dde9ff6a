"""Views of pictures with a map of classes, which is turned, moved and cut with them.

Legend of shapes: H W a picture, or a view of the input's own size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeattn._cv2 import cv2
from edgeattn.datasets.annotated import IGNORE, Annotated, ClassMap
from edgeattn.imaging import Picture, read_picture
from edgeattn.spec import InputSpec
from edgeattn.train.augment import Augment, shrink
from edgeattn.train.loader import Kept, View, Where

_NEAREST = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP


class MapViews:
    """Views of pictures with masks: kept small in memory once read, augmented anew each time.

    What a view shows beyond its picture's edge is IGNOREd.
    """

    def __init__(
        self, records: Sequence[Annotated], spec: InputSpec, augment: Augment, *, foreground: bool = False
    ) -> None:
        """List them; with `foreground`, all that is not of class 0 tells attention where to look."""
        self.records, self.spec, self.augment, self.foreground = records, spec, augment, foreground
        self._kept = Kept(self._read)

    def __len__(self) -> int:
        return len(self.records)

    def view(self, index: int, rng: np.random.Generator) -> View:
        """As `Views.view`."""
        picture, classes = self._kept[index]
        seen, matrix = self.augment.placed(picture, self.spec, rng)
        size = (self.spec.width, self.spec.height)
        warped = cv2.warpAffine(
            classes, matrix, size, flags=_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=(IGNORE,)
        )
        truth = np.asarray(warped, np.uint8)
        return View(seen, truth, _where(truth) if self.foreground else None)

    def _read(self, index: int) -> tuple[Picture, ClassMap]:
        record = self.records[index]
        classes = record.class_map()
        picture = shrink(read_picture(record.path), self.spec)
        smaller = cv2.resize(classes, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return picture, np.asarray(smaller, np.uint8)


def _where(truth: ClassMap) -> Where:
    return np.asarray((truth != 0) & (truth != IGNORE), np.float32)
