"""What a process does from its start to the first result; run by the profiler in a process of its own.

Takes a bundle's folder, an engine, a precision and the number of threads (0: the default), and prints as JSON when each
part was done, what was executed and how much memory that took.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from edgeattn import engines
from edgeattn.bundle import load
from edgeattn.errors import EdgeAttnError
from edgeattn.imaging import prepare
from edgeattn.tasks import decode
from edgeattn.timing import monotonic_ns
from edgeattn.timing.memory import give_back, leave_out_converter, memory


def main(began_ns: int) -> None:
    """Load, open, answer one grey picture; `began_ns`: when the interpreter was ready."""
    marks_ns = [began_ns, monotonic_ns()]
    path, name, precision, threads = sys.argv[1:]
    leave_out_converter()
    try:
        bundle = load(path)
        engine = engines.open_artefact(bundle, bundle.artefact(name, precision), threads=int(threads) or None)
        marks_ns.append(monotonic_ns())
        picture = prepare(np.full((480, 640, 3), 128, np.uint8), bundle.spec.input)
        decode(engine.infer(picture), bundle.spec)
        marks_ns.append(monotonic_ns())
        give_back()
        decode(engine.infer(picture), bundle.spec)  # what it holds then is what answering takes; opening took more
        used = memory()
        executed = {"executed_precision": engine.executed_precision, "threads": engine.threads}
        print(json.dumps({"marks_ns": marks_ns, "memory": used, "details": dict(engine.details)} | executed))
        engine.close()
    except EdgeAttnError as error:
        sys.exit(str(error))
