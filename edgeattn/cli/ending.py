"""What `run` says and writes at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.cli.common import write_json

if TYPE_CHECKING:
    from edgeattn.camera.feed import Feed
    from edgeattn.camera.frame import Source
    from edgeattn.camera.pipeline import Pipeline
    from edgeattn.camera.record import Record

SCHEMA = "edgeattn.run/1"


def report_of(record: Record, pipeline: Pipeline, feeds: Sequence[Feed], status: Mapping[str, Any]) -> dict[str, Any]:
    """A run as JSON."""
    import psutil

    from edgeattn.spec import to_json

    engine = pipeline.engine
    return {
        "schema": SCHEMA,
        "bundle": pipeline.bundle.name,
        "source": ", ".join(each.name for each in pipeline.sources),
        "engine": engine.name,
        "precision": engine.precision,
        "executed_precision": engine.executed_precision,
        "device": dict(engine.details) | {"certificate": to_json(pipeline.certificate)},
        "threads": engine.threads,
        "in_flight": pipeline.in_flight,
        "maps": pipeline.maps,
        **record.report(pipeline.statuses),
        "sinks": [feed.report() for feed in feeds],
        "shadow": status.get("shadow"),
        "fallback": status.get("fallback"),
        "changes": status.get("changes", []),
        "rss_mb": round(psutil.Process().memory_info().rss / 1e6, 1),
    }


def finish(report: dict[str, Any], say: Callable[[str], None], json: Path | None, source: Source) -> None:
    """Say what was seen, and write the report."""
    from edgeattn.camera.record import sentence
    from edgeattn.timing import environment

    say(sentence(report))
    for each in report.get("sources", []):
        say(f"  {each['source']}: {sentence(each)}")
    skipped = getattr(source, "skipped", [])
    for _, reason in skipped:
        say(f"skipped {reason}")
    if json is not None:
        report["skipped"] = [{"path": str(path), "reason": reason} for path, reason in skipped]
        write_json(json, report | {"environment": environment()})
