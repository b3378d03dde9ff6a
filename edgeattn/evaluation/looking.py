"""How well an attention map tells where to look: against gaze, masks, and the model's own answer.

The measures of saliency are those that Bylinskii et al. compare (2016, arXiv:1604.03605); which one fits:
    mask or box     `energy_inside`, `pointing`
    gaze density    `kl`, `cosine`
    fixated points  `nss`, `auc_judd`
    no truth        `faithfulness`: does the answer hang on what the map marks?

Legend of shapes: h w a map, H W the truth over the same part of the picture. Maps are raw or normalised; they are resized
to the truth, not the truth to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.errors import DataError
from edgeattn.imaging import Picture
from edgeattn.maps import Maps, normalise

Mask = NDArray[np.bool_]

EPSILON = 1e-7
"""Kept from zero inside logarithms; that of the MIT benchmark's KL."""
STEPS = 24
"""Pictures on the way from none to all of what a map marks."""
BLUR = 0.15
"""Sigma of the blur that stands for nothing seen, as a fraction of the side."""


def energy_inside(map_hw: NDArray[Any], mask_HW: Mask) -> float:
    """Share of a map's attention (h, w) that lies inside a mask (H, W), 0 to 1 (Wang et al. 2020, arXiv:1910.01279)."""
    height, width = map_hw.shape
    covered = cv2.resize(mask_HW.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return float((normalise(map_hw) * covered).sum())


def pointing(map_hw: NDArray[Any], mask_HW: Mask) -> bool:
    """Whether the map's greatest place lies on the mask: the pointing game (Zhang et al. 2016, arXiv:1608.00507).

    The place is the middle of the map's greatest cell; a constant map points nowhere.
    """
    if map_hw.max() <= map_hw.min():
        return False
    y, x = np.unravel_index(int(np.argmax(map_hw)), map_hw.shape)
    height, width = mask_HW.shape
    return bool(mask_HW[int((y + 0.5) * height / map_hw.shape[0]), int((x + 0.5) * width / map_hw.shape[1])])


def kl(map_hw: NDArray[Any], density_HW: NDArray[Any]) -> float:
    """Kullback-Leibler divergence from the density to the map, in nats: 0 is equal, more is worse."""
    p, q = normalise(density_HW), normalise(resized(map_hw, density_HW.shape))
    return float((p * np.log(EPSILON + p / (q + EPSILON))).sum())


def cosine(map_hw: NDArray[Any], density_HW: NDArray[Any]) -> float:
    """Cosine between map and density, 0 (apart) to 1 (equal)."""
    p, q = normalise(density_HW), normalise(resized(map_hw, density_HW.shape))
    return float((p * q).sum() / np.sqrt((p**2).sum() * (q**2).sum()))


def nss(map_hw: NDArray[Any], fixated_HW: Mask) -> float:
    """Normalised scanpath saliency: the map's mean at fixated points, in standard deviations (Peters et al. 2005).

    Chance and a constant map are 0; NaN where nothing is fixated.
    """
    values = resized(map_hw, fixated_HW.shape)
    if not fixated_HW.any():
        return float("nan")
    spread = values.std()
    return float((values[fixated_HW].mean() - values.mean()) / spread) if spread > 0 else 0.0


def auc_judd(map_hw: NDArray[Any], fixated_HW: Mask) -> float:
    """Area under the curve that tells fixated points from all others by the map (Judd et al. 2009).

    Computed from ranks, so that equal values count half instead of being jittered. Chance and a constant map are 0.5;
    NaN where nothing, or everything, is fixated.
    """
    values, hit = resized(map_hw, fixated_HW.shape).ravel(), fixated_HW.ravel()
    hits, others = int(hit.sum()), int((~hit).sum())
    if not hits or not others:
        return float("nan")
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]
    return float((ranks[hit].sum() - hits * (hits + 1) / 2) / (hits * others))


def measures(map_hw: NDArray[Any], density_HW: NDArray[Any]) -> dict[str, float]:
    """Every measure that a mask or a density allows, by name.

    The mask is where the density is above half of its greatest value: JPEG leaves faint traces around a mask.
    """
    mask_HW = density_HW > density_HW.max() / 2
    return {
        "energy_inside": energy_inside(map_hw, mask_HW),
        "pointing": float(pointing(map_hw, mask_HW)),
        "kl": kl(map_hw, density_HW),
        "cosine": cosine(map_hw, density_HW),
    }


def resized(map_hw: NDArray[Any], shape: tuple[int, ...]) -> Maps:
    """A map (h, w) at another size, bilinear.

    Raises:
        DataError: it is no (h, w).
    """
    if map_hw.ndim != 2 or len(shape) != 2:
        raise DataError(f"a map and its truth must be (h, w), not {map_hw.shape} and {shape}")
    clean = np.where(np.isfinite(map_hw), map_hw, 0.0).astype(np.float64)
    if clean.shape == shape:
        return clean
    return np.asarray(cv2.resize(clean, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), np.float64)


def centre_gaussian(shape: tuple[int, int], sigma: float = 0.25) -> Maps:
    """The map that any claim about gaze must beat, since people look at the centre: (h, w).

    Args:
        shape: height and width.
        sigma: standard deviation, as a fraction of each side.
    """
    y, x = (np.exp(-0.5 * (((np.arange(side) + 0.5) / side - 0.5) / sigma) ** 2) for side in shape)
    return normalise(np.outer(y, x))


@dataclass(frozen=True)
class Faithfulness:
    """How the probability of the answer follows what a map marks (RISE, Petsiuk et al. 2018, arXiv:1806.07421)."""

    insertion: tuple[float, ...]
    """Probability with the first parts of what the map marks uncovered, none to all; high early is good."""
    deletion: tuple[float, ...]
    """Probability with the first parts covered, none to all; low early is good."""

    @property
    def insertion_auc(self) -> float:
        """Area under `insertion`, 0 to 1."""
        return _area(self.insertion)

    @property
    def deletion_auc(self) -> float:
        """Area under `deletion`, 0 to 1."""
        return _area(self.deletion)


def faithfulness(
    map_hw: NDArray[Any], picture: Picture, probability: Callable[[Picture], float], *, steps: int = STEPS
) -> Faithfulness:
    """Uncover and cover a picture in the order of a map, `steps` times each.

    Args:
        map_hw: the map, over all of the picture.
        picture: what the model sees, (H, W, 3) bytes; what is covered is blurred, not black, which would be an object.
        probability: of the answer on the whole picture, for a picture.
        steps: parts that the pixels are cut into.
    """
    height, width = picture.shape[:2]
    order = np.argsort(-resized(map_hw, (height, width)).ravel(), kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    ranks_HW1 = rank.reshape(height, width, 1)
    nothing = np.asarray(cv2.GaussianBlur(picture, (0, 0), BLUR * max(height, width)), np.uint8)
    bounds = [round(len(order) * step / steps) for step in range(steps + 1)]
    return Faithfulness(
        tuple(probability(np.where(ranks_HW1 < bound, picture, nothing)) for bound in bounds),
        tuple(probability(np.where(ranks_HW1 < bound, nothing, picture)) for bound in bounds),
    )


def _area(curve: tuple[float, ...]) -> float:
    return float((np.sum(curve) - (curve[0] + curve[-1]) / 2) / (len(curve) - 1))
