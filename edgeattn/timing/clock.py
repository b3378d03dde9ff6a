"""The clock: monotonic nanoseconds, handed in wherever time is read, so that a test can turn it by hand."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Gives nanoseconds since some fixed moment; never runs backwards."""

monotonic_ns: Clock = time.monotonic_ns
"""The clock of this machine; on Linux the one that kernel and cameras stamp frames with."""

thread_ns: Clock = time.thread_time_ns
"""Processor time of the thread that asks."""

NS_PER_MS = 1_000_000
"""Nanoseconds in a millisecond."""
