"""The keys of the window, and the pictures that they save."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Literal

from edgeattn._cv2 import cv2
from edgeattn.camera.canvas import View
from edgeattn.errors import EdgeAttnError
from edgeattn.imaging import Picture

HELP = "a attention, b block, space pause, s picture, q quit"
"""The keys in one line."""
_ESCAPE = 27

Action = Literal["redraw", "snapshot"] | int
"""What a key asks for beyond a change of state: an int is the class to save the frame for, from 0."""


class Controls:
    """What the keys have set so far."""

    def __init__(self, *, attention: bool = True, blocks: tuple[str, ...] = ()) -> None:
        self.blocks = blocks
        """The blocks whose attention can be shown alone."""
        self.view = View(attention=attention)
        """How the attention is shown."""
        self.paused = False
        """The picture stands still."""
        self.quit = False
        """The run is to end."""

    def change_blocks(self, blocks: tuple[str, ...]) -> None:
        """Another model runs, with other blocks."""
        attention = bool(blocks) and (self.view.attention or not self.blocks)
        block = self.view.block if self.view.block in blocks else None
        self.blocks, self.view = blocks, dataclasses.replace(self.view, attention=attention, block=block)

    def press(self, key: int) -> Action | None:
        """Take a key's code (-1: none was pressed); returns what is to be done about it."""
        if key in (ord("q"), _ESCAPE):
            self.quit = True
        elif key == ord(" "):
            self.paused = not self.paused
        elif key == ord("a"):
            self.view = dataclasses.replace(self.view, attention=not self.view.attention)
            return "redraw"
        elif key == ord("b"):
            shown = (None, *self.blocks)  # None: the mean of all
            following = shown[(shown.index(self.view.block) + 1) % len(shown)]
            self.view = dataclasses.replace(self.view, block=following)
            return "redraw"
        elif key == ord("s"):
            return "snapshot"
        elif ord("0") <= key <= ord("9"):
            return (key - ord("1")) % 10  # "1" is the first class, "0" the tenth
        return None


class Collector:
    """Saves frames into class folders, as `edgeattn make` reads them."""

    def __init__(self, root: Path, labels: tuple[str, ...]) -> None:
        self.root, self.labels = root, labels

    def save(self, picture: Picture, index: int) -> Path:
        """Save a frame for class `index`, from 0, and return its path; never replaces a file.

        Raises:
            EdgeAttnError: there is no such class, or the file cannot be written.
        """
        if index >= len(self.labels):
            raise EdgeAttnError(f"key {(index + 1) % 10} stands for no class: there are {len(self.labels)}")
        return save_picture(picture, self.root / folder_name(self.labels[index]), ".jpg")


def folder_name(label: str) -> str:
    """A label as the name of a folder: what would lead elsewhere becomes `_`."""
    return re.sub(r"[/\\\0]|^\.+$", "_", label) or "_"


def save_picture(picture: Picture, folder: Path, suffix: str) -> Path:
    """Save a picture under the time of day; `.jpg` at quality 95 or `.png`.

    Raises:
        EdgeAttnError: the file cannot be written.
    """
    coded = cv2.imencode(suffix, picture, [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix == ".jpg" else [])[1].tobytes()
    stem = time.strftime("%Y%m%d-%H%M%S") + f"-{time.time_ns() // 1_000_000 % 1000:03d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(1000):
            path = folder / (f"{stem}{suffix}" if number == 0 else f"{stem}-{number}{suffix}")
            if not path.exists():
                path.write_bytes(coded)  # imwrite fails on non-ASCII paths on some systems
                return path
    except OSError as error:
        raise EdgeAttnError(
            f"{folder}: the picture was not saved ({error.strerror}); free some room or go elsewhere"
        ) from error
    raise EdgeAttnError(f"{folder}: the picture was not saved, its name is taken; try again")
