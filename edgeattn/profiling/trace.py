"""A profile's frames as a trace for Perfetto (ui.perfetto.dev) and Chrome (chrome://tracing): the Trace Event Format."""

from __future__ import annotations

from typing import Any

from edgeattn.profiling.report import Report


def trace_events(report: Report) -> dict[str, Any]:
    """One track an artefact, one slice a stage of the latest frames; times count from the first of them."""
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": f"edgeattn profile {report.bundle}"}}
    ]
    began_ns = min((int(s.min()) for r in report.results for s in r.starts_ns.values() if s.size), default=0)
    for track, result in enumerate(report.results, start=1):
        events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": track, "args": {"name": result.name}})
        for stage, starts_ns in result.starts_ns.items():
            durations_ms = result.stages_ms[stage]
            for number, (start_ns, ms) in enumerate(zip(starts_ns.tolist(), durations_ms.tolist(), strict=True)):
                slice_us = {"ts": (start_ns - began_ns) / 1000, "dur": ms * 1000}
                events.append({"name": stage, "ph": "X", "pid": 1, "tid": track, "args": {"frame": number}} | slice_us)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"bundle": report.bundle, "mode": report.mode}}
