"""All errors that edgeattn raises on purpose.

    EdgeAttnError                    the base: `except EdgeAttnError` catches every one of them
    ├── SpecError(ValueError)        a field of a spec or a recipe is wrong
    ├── NameNotFoundError(LookupError)   an attention, model, teacher or zoo name is unknown; lists the choices
    ├── DataError(ValueError)        pictures or labels that cannot be used
    ├── PictureError(DataError)      one picture that cannot be read
    ├── BundleError(ValueError)      a bundle that is missing, altered or of a schema we do not know
    ├── EngineError(RuntimeError)    an engine cannot load or run a file
    ├── SourceError(OSError)         a camera, stream or video cannot be opened
    ├── RefusedError(SourceError)    a camera answers, and wants another login or address
    ├── ExtraMissingError(ImportError)   an optional package is not installed; names the pip line
    └── GateError(RuntimeError)      a gate failed: the step is refused, what was there before still stands

Each message says what is wrong, where, and what to do next, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgeAttnError(Exception):
    """Base of all errors raised on purpose."""


class SpecError(EdgeAttnError, ValueError):
    """A field of a spec or a recipe is out of its range."""


class NameNotFoundError(EdgeAttnError, LookupError):
    """A name that nothing goes by; the message lists the choices and the nearest."""

    def __init__(self, kind: str, name: str, choices: Iterable[str], hint: str = "") -> None:
        listed = sorted(choices)
        near = difflib.get_close_matches(name, listed, n=1, cutoff=0.4)
        meant = f" Did you mean '{near[0]}'?" if near else ""
        super().__init__(
            f"no {kind} is named '{name}'.{meant} Choices: {', '.join(listed)}.{' ' + hint if hint else ''}"
        )


class DataError(EdgeAttnError, ValueError):
    """Pictures or labels that cannot be used."""


class PictureError(DataError):
    """One picture that cannot be read."""


class BundleError(EdgeAttnError, ValueError):
    """A bundle that is missing, altered, or of a schema this version does not know."""


class EngineError(EdgeAttnError, RuntimeError):
    """An engine that cannot load or run a file."""


class SourceError(EdgeAttnError, OSError):
    """A camera, stream or video that cannot be opened or read."""


class RefusedError(SourceError):
    """A camera that answers, and wants another login or address: trying again does not help."""


class ExtraMissingError(EdgeAttnError, ImportError):
    """An optional package that is not installed."""

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(f"{why} needs '{package}', which is not installed: pip install 'edgeattn[{extra}]'")


class GateError(EdgeAttnError, RuntimeError):
    """A gate that failed; what was there before still stands."""
