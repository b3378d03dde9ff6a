"""Measurements of this machine, kept in the user's cache by all that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgeattn.engines.base import cache_dir
from edgeattn.spec import from_json, to_json

T = TypeVar("T")


def recall(folder: str, key: Mapping[str, Any], kind: type[T]) -> T | None:
    """The dataclass `kind` that was kept in a folder of the cache for `key`; None: none, or a spoilt one."""
    file = _file(folder, key)
    try:
        held = json.loads(file.read_text(encoding="utf-8")) if file else {}
        return from_json(kind, held["value"]) if held["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not ours any more
        return None


def keep(folder: str, key: Mapping[str, Any], value: Any) -> None:
    """Keep a dataclass; on a box with a read-only disk nothing is kept, and it is measured at every start."""
    file = _file(folder, key)
    if file is None:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        partial.write_text(json.dumps({"key": key, "value": to_json(value)}, indent=1), encoding="utf-8")
        partial.replace(file)


def _file(folder: str, key: Mapping[str, Any]) -> Path | None:
    root = cache_dir()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return root / folder / f"{name}.json" if root else None
