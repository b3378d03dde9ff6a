"""OpenCV, whichever build is installed: 4 or 5, with windows (`camera`) or without (`headless`).

Import it as `from edgeattn._cv2 import cv2`, so that a missing build is said with its remedy.
"""

from __future__ import annotations

import importlib.metadata
import os

from edgeattn.errors import ExtraMissingError

# A stream that is away is our message, in one line, not fifty of OpenCV's and FFmpeg's (-8 is FFmpeg's "quiet").
os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

WHEELS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def installed_wheels() -> list[str]:
    """Installed wheels that own `cv2`; more than one overwrite each other's files."""
    found = []
    for wheel in WHEELS:
        try:
            found.append(f"{wheel} {importlib.metadata.version(wheel)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


try:
    import cv2
except ImportError as error:
    wheels = installed_wheels()
    if len(wheels) > 1:
        raise ExtraMissingError(
            "one OpenCV",
            "camera",
            f"{' and '.join(wheels)} both own cv2 and broke each other: uninstall both; edgeattn",
        ) from error
    raise ExtraMissingError("opencv-python", "camera", "edgeattn (without a screen: edgeattn[headless])") from error

__all__ = ["cv2", "installed_wheels"]
