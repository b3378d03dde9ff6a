"""From a trained model to files that engines run, and the proof that nothing broke on the way.

`export` and `quantize` need the extra `train`; `verify` runs without torch, so each is imported when first used.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeattn.deploy.export import export
    from edgeattn.deploy.quantize import quantize
    from edgeattn.deploy.verify import verify

__all__ = ["export", "quantize", "verify"]


class _Deploy(types.ModuleType):
    """Here a function and its module have one name; importing the module must not put it in the function's place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Deploy


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgeattn.deploy' has no attribute '{name}'")
    return getattr(importlib.import_module(f"edgeattn.deploy.{name}"), name)
