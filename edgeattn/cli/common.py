"""What the verbs share: the console, JSON files and the way errors reach the user."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console

from edgeattn.errors import BundleError, EdgeAttnError, ExtraMissingError, NameNotFoundError
from edgeattn.spec import Task

if TYPE_CHECKING:
    from edgeattn.bundle import Bundle

console = Console(highlight=False, soft_wrap=True)
"""Standard output; plain text when it is no terminal."""

NO_VERDICT = 3
"""Exit code where something was measured and cannot be told."""

INTERRUPTED = 130
"""Exit code of a program that was stopped by Ctrl-C."""

TASK = "classify, detect or segment; default: what the data asks for (class folders, boxes, masks)."
"""Help of --task where something is trained."""

SIZE = "Side of the square input, in pixels; default: 96, of a detector or segmenter 320."
"""Help of --imgsz where something is trained."""

SkipMissing = Annotated[
    bool, typer.Option("--skip-missing", help="Leave out annotated pictures that are missing or cannot be read.")
]
"""The option of the verbs that read boxes and masks."""


def write_json(path: Path | None, payload: dict[str, Any]) -> None:
    """Write `payload` to `path` in one step, so that a reader never sees half of it; None: do nothing.

    Raises:
        EdgeAttnError: the file cannot be written.
    """
    if path is not None:
        write_text(path, json.dumps(payload, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write a file in one step.

    Raises:
        EdgeAttnError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise EdgeAttnError(f"{path}: the report was not written ({error.strerror}); choose another path") from error


def say(line: str) -> None:
    """Print a line as it is: brackets and colons of paths are no markup."""
    console.print(line, markup=False)


def load_own(name: str) -> Bundle:
    """Open a bundle that is to be written to, which those of the zoo are not: they lie in the installed package.

    Raises:
        BundleError: it is the zoo's; says how to copy it. Or as `bundle.load`.
    """
    from edgeattn.bundle import ZOO, load

    bundle = load(name)
    if bundle.path.resolve().is_relative_to(ZOO.resolve()):
        raise BundleError(
            f"{bundle.path} ships with edgeattn and stays as it is; name a copy of it: cp -r {bundle.path} {bundle.path.name}"
        )
    return bundle


def as_task(name: str) -> Task | None:
    """The task called `name`; None for no name.

    Raises:
        NameNotFoundError: there is none.
    """
    tasks: tuple[Task, ...] = get_args(Task)
    if name and name not in tasks:
        raise NameNotFoundError("task", name, tasks)
    return next((task for task in tasks if task == name), None)


def need_training(verb: str) -> None:
    """Check that the training half is installed.

    Raises:
        ExtraMissingError: it is not; names the pip line.
    """
    from importlib.util import find_spec

    for package in ("torch", "onnxscript", "nncf", "accelerate", "safetensors", "sklearn", "skimage"):
        if find_spec(package) is None:
            raise ExtraMissingError(package, "train", verb)
