"""From a name on the command line to a class or factory: a name of ours, or `package.module:Class`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from edgeattn.errors import NameNotFoundError, SpecError


def resolve(kind: str, name: str, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Look `name` up in `known`, or import it where it reads `package.module:Class`.

    Raises:
        NameNotFoundError: no such name, module or attribute.
        SpecError: what was found cannot be called.
    """
    if name in known:
        return known[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise NameNotFoundError(kind, name, known, "Your own is named package.module:Class.")
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109  as `python -m` does: a module beside the user's work is found
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise NameNotFoundError(kind, name, known, f"({error})") from error
    if not callable(found):
        raise SpecError(
            f"{kind} '{name}' is a {type(found).__name__}; it must be a class or a function that builds a module"
        )
    return found  # type: ignore[no-any-return]
