"""edgeattn: small vision models with attention, trained, quantized, checked and run live on real boxes.

The names below are the edge side and import no torch; training is `edgeattn.train`, export and quantization
`edgeattn.deploy`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeattn.bundle import Bundle, load
    from edgeattn.camera import Camera, Folder, Pipeline, Video
    from edgeattn.engines import open_engine
    from edgeattn.errors import EdgeAttnError
    from edgeattn.profiling import profile
    from edgeattn.spec import Spec

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "bundle",
    "Camera": "camera",
    "EdgeAttnError": "errors",
    "Folder": "camera",
    "Pipeline": "camera",
    "Spec": "spec",
    "Video": "camera",
    "load": "bundle",
    "open_engine": "engines",
    "profile": "profiling",
}

__all__ = [  # the names are resolved on first use, so that `import edgeattn` stays light
    "Bundle",
    "Camera",
    "EdgeAttnError",
    "Folder",
    "Pipeline",
    "Spec",
    "Video",
    "load",
    "open_engine",
    "profile",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeattn' has no attribute '{name}'")
    return getattr(importlib.import_module(f"edgeattn.{_HOMES[name]}"), name)
