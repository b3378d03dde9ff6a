"""Settings of `edgeattn run` from a TOML file: keys are named as the options are, and the command line wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from edgeattn.errors import EdgeAttnError, NameNotFoundError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef, import-not-found, unused-ignore]

OWN = ("settings", "help")
"""Options that no file of settings holds."""


def read(path: Path, choices: dict[str, bool]) -> dict[str, Any]:
    """Values by the options' names.

    Args:
        path: the file.
        choices: the options' names, as in `max_fps`, each with whether it takes several values.

    Raises:
        EdgeAttnError: the file cannot be read, or holds something else than values.
        NameNotFoundError: a key that is no option; names the nearest.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise EdgeAttnError(f"{path}: the settings cannot be read ({why}); see: edgeattn service --help") from error
    except tomllib.TOMLDecodeError as error:
        raise EdgeAttnError(f'{path} is not TOML ({error}); texts want quotes, as in source = "env:CAMERA"') from error
    values = {}
    for key, value in raw.items():
        name = key.replace("-", "_")
        if name not in choices:
            shown = [each.replace("_", "-") for each in choices]
            raise NameNotFoundError(f"option of `run`, as {path} asks for,", key, shown)
        several = isinstance(value, list)
        if isinstance(value, dict) or (several and not choices[name]):
            raise EdgeAttnError(f"{path}: {key} takes one value, not a {'list' if several else 'table'}; give it one")
        values[name] = value if several or not choices[name] else [value]
    return values


def take(ctx: typer.Context, path: Path | None) -> Path | None:
    """Let a file's values stand where the command line gives none: what `--settings` does before all other options."""
    if path is not None and not ctx.resilient_parsing:
        known = {each.name: bool(getattr(each, "multiple", False)) for each in ctx.command.params if each.name}
        ctx.default_map = read(path, {name: several for name, several in known.items() if name not in OWN})
    return path


def bundle_of(path: Path | None, otherwise: str) -> str:
    """The bundle that a file of settings names now.

    Raises:
        EdgeAttnError: the file cannot be read.
    """
    if path is None:
        return otherwise
    try:
        return str(tomllib.loads(path.read_text(encoding="utf-8")).get("bundle", otherwise))
    except (OSError, ValueError) as error:
        raise EdgeAttnError(
            f"{path}: the settings cannot be read ({error}); mend them and send SIGHUP again"
        ) from error
