"""Latency of a bundle on this machine: every artefact in turns, per stage, with what the figures rest on."""

from edgeattn.profiling.profile import Profiler, profile
from edgeattn.profiling.report import Report, Result

__all__ = ["Profiler", "Report", "Result", "profile"]
