"""Masks from outlines against those of faster-coco-eval, whose code is that of COCO's authors."""

from __future__ import annotations

import numpy as np
import pytest
from faster_coco_eval import mask as oracle

from edgeattn._cv2 import cv2
from edgeattn.datasets.cards import Cards
from edgeattn.datasets.outlines import check_outline, draw_outline

SHAPE = (97, 143)


def blobs(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).random(SHAPE)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 3) > 0.5)


@pytest.mark.parametrize("text", [True, False])
def test_compressed_run_lengths(text: bool) -> None:
    for seed in range(20):
        coded = oracle.encode(np.asfortranarray(blobs(seed).astype(np.uint8)))
        counts = coded["counts"]
        if text and isinstance(counts, bytes):
            counts = counts.decode("ascii")
        outline = {"size": coded["size"], "counts": counts}
        check_outline(outline, SHAPE)
        np.testing.assert_array_equal(draw_outline(outline, SHAPE), blobs(seed))


def test_polygons_agree_but_for_pixels_on_the_edge() -> None:
    for seed in range(10):
        outlines, _ = cv2.findContours(blobs(seed).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        outline = cv2.approxPolyDP(max(outlines, key=cv2.contourArea), 1.0, True)
        polygon = (outline.ravel() + 0.37).tolist()
        expected = oracle.decode(oracle.merge(oracle.frPyObjects([polygon], *SHAPE))).astype(bool)
        found = draw_outline([polygon], SHAPE)
        assert (found & expected).sum() / (found | expected).sum() > 0.97
        edge = cv2.morphologyEx(expected.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8))
        assert not (found != expected)[edge == 0].any()


def test_cards_have_the_class_map_of_their_mask() -> None:
    sample = Cards("train", seed=2, size=64).sample(7)
    classes = sample.class_map()
    assert Cards.map_names[8] == "7"
    np.testing.assert_array_equal(classes == 8, sample.mask)
    assert set(np.unique(classes)) == {0, 8}
    left, top, right, bottom = sample.boxes[0]
    y, x = np.nonzero(sample.mask)
    assert (x.min() >= left - 1) & (x.max() < right + 1) & (y.min() >= top - 1) & (y.max() < bottom + 1)
