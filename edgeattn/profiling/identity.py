"""Which model and which machine a profile is of: two of them may only be compared where both are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from edgeattn.bundle import Bundle
from edgeattn.spec import to_json

MACHINE = ("cpu", "architecture", "flags", "usable_cores", "memory_mb")
"""Fields of the environment by which a machine is told from another."""


def model_of(bundle: Bundle) -> dict[str, Any]:
    """What a model takes and gives, and a digest of that and of its graph: weights that were trained anew do not change it."""
    spec = {key: value for key, value in to_json(bundle.spec).items() if key not in ("rejection", "thresholds")}
    told = json.dumps([spec, _structure(bundle)], sort_keys=True)
    shape = bundle.spec.input.shape
    return {
        "task": bundle.spec.task,
        "input": list(shape),
        "labels": len(bundle.spec.labels),
        "attention": sorted({each.mechanism for each in bundle.spec.maps}),
        "digest": hashlib.sha256(told.encode()).hexdigest()[:16],
    }


def machine_of(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that tell a machine from another."""
    return {name: environment.get(name) for name in MACHINE}


def _structure(bundle: Bundle) -> list[Any]:
    """Types of the float graph's nodes and shapes of its weights; of an IR without ONNX nothing."""
    import onnx

    for artefact in bundle.artefacts:
        if artefact.precision == "float" and artefact.file.endswith(".onnx"):
            graph = onnx.load(bundle.file(artefact), load_external_data=False).graph
            return [[node.op_type for node in graph.node], [list(weight.dims) for weight in graph.initializer]]
    return []
