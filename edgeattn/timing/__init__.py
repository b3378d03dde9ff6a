"""Clock, spans, statistics and the record of the machine: what every measuring verb shares."""

from edgeattn.timing.clock import NS_PER_MS, Clock, monotonic_ns, thread_ns
from edgeattn.timing.environment import environment, processor_key, usable_cores
from edgeattn.timing.spans import Spans
from edgeattn.timing.statistics import SAMPLE_FLOORS, summary, text

__all__ = [
    "NS_PER_MS",
    "SAMPLE_FLOORS",
    "Clock",
    "Spans",
    "environment",
    "monotonic_ns",
    "processor_key",
    "summary",
    "text",
    "thread_ns",
    "usable_cores",
]
