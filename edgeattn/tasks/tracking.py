"""Which box of a frame is the same thing as one of the frame before: ByteTrack (Zhang et al. 2022, arXiv:2110.06864).

Boxes that are surer than the detector's threshold start tracks and are matched first; less sure ones only go on with tracks
that would be lost otherwise, as behind another thing. By the package trackers, which is optional.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from edgeattn.errors import ExtraMissingError
from edgeattn.spec import Spec, Thresholds
from edgeattn.tasks.detect import Detections

LEAST = 0.1
"""Score of a box from which on it can go on with a track."""
LOST_S = 1.0
"""How long a thing may be out of sight and still be the same one."""


def unsure(spec: Spec) -> Spec:
    """A detector's contract with the threshold that a tracker wants its boxes by."""
    told = spec.thresholds or Thresholds()
    return dataclasses.replace(spec, thresholds=dataclasses.replace(told, confidence=min(told.confidence, LEAST)))


class Tracker:
    """The tracks of one camera."""

    def __init__(self, spec: Spec) -> None:
        """Begin without tracks; `spec` says from which score on a box is told.

        Raises:
            ExtraMissingError: the package trackers is not installed.
        """
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise ExtraMissingError("trackers", "track", "following boxes from frame to frame") from error
        self._confidence = (spec.thresholds or Thresholds()).confidence
        self._tracks = ByteTrackTracker(
            lost_track_buffer=round(30 * LOST_S),  # it counts in frames of 30 a second, whatever the camera gives
            track_activation_threshold=self._confidence,
            high_conf_det_threshold=self._confidence,
            minimum_consecutive_frames=1,
        )

    def update(self, found: Detections, time_s: float) -> Detections:
        """Take in the boxes of the next frame, found by the spec that `unsure` gives, and give those that are told.

        Args:
            found: the boxes.
            time_s: when the frame was taken, in seconds of any clock.

        Returns:
            The boxes that are surer than the threshold or go on with a track, with their `tracks`.
        """
        boxes = dataclasses.replace(found, masks=None).supervision()
        boxes.data["place"] = np.arange(len(found.scores))
        followed = self._tracks.update(boxes, timestamp=time_s)
        tracks = np.full(len(found.scores), -1, np.int64)
        if len(followed):
            tracks[followed.data["place"]] = followed.tracker_id
        told = (found.scores > self._confidence) | (tracks >= 0)
        return dataclasses.replace(found, tracks=tracks).chosen(told)
