"""A run's status as text that Prometheus reads."""

from __future__ import annotations

from typing import Any

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
"""The format of the text."""
WELL = ("running", "paused", "connecting", "stalled", "down")
"""States in which the loop turns, whatever the camera does."""


def metrics(status: dict[str, Any]) -> str:
    """A run's status as Prometheus reads it; what is not known yet is left out."""
    shadow = status.get("shadow") or {}
    live: list[tuple[str, float | None]] = [
        (f'camera="{_escaped(each["source"])}"', float(each["state"] == "live")) for each in status.get("cameras", [])
    ]
    changes = [(f'change="{change}"', count) for change, count in status.get("change_counts", {}).items()]
    running = ",".join(
        f'{name}="{_escaped(status[name])}"' for name in ("bundle", "engine", "precision") if name in status
    )
    drops = [(f'cause="{_escaped(cause)}"', count) for cause, count in status["dropped"].items()]
    quantiles = {
        key: [(f'quantile="{q}"', status[f"{key}_ms"][p]) for q, p in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))]
        for key in ("age", "infer")
    }
    families: list[tuple[str, str, str, list[tuple[str, float | None]]]] = [
        ("frames_total", "counter", "Results so far.", [("", status["frames"])]),
        ("dropped_total", "counter", "Frames left out, by cause.", drops),
        ("reconnects_total", "counter", "Times the stream was opened again.", [("", status["reconnects"])]),
        ("up", "gauge", "1 while the loop turns.", [("", float(status["state"] in WELL))]),
        ("camera_live", "gauge", "1 while frames come.", live),
        ("model_info", "gauge", "What runs.", [(running, 1.0 if running else None)]),
        ("changes_total", "counter", "Changes of the model, by outcome.", changes),
        (
            "fallback",
            "gauge",
            "1 while float runs in place of what drifted.",
            [("", float(bool(status["fallback"])) if "fallback" in status else None)],
        ),
        ("shadow_checked_total", "counter", "Frames that float answered as well.", [("", shadow.get("checked"))]),
        ("shadow_differed_total", "counter", "Frames that float answered otherwise.", [("", shadow.get("differed"))]),
        ("shadow_map_js", "gauge", "Divergence of the attention from float's, relative.", [("", shadow.get("map_js"))]),
        ("shadow_map_rank", "gauge", "Rank correlation with float's attention.", [("", shadow.get("map_rank"))]),
        (
            "shadow_broken",
            "gauge",
            "1 while a bound on the drift is broken.",
            [("", float(shadow["verdict"] == "failed") if shadow else None)],
        ),
        ("fps", "gauge", "Results a second, over the latest.", [("", status["fps"])]),
        ("age_ms", "gauge", "From capture to result, over the latest.", quantiles["age"]),
        ("infer_ms", "gauge", "Time in the engine, over the latest.", quantiles["infer"]),
        ("browsers", "gauge", "Browsers that watch.", [("", status["browsers"])]),
    ]
    lines = []
    for name, kind, meaning, samples in families:
        known = [(labels, value) for labels, value in samples if value is not None]
        if known:
            lines += [f"# HELP edgeattn_{name} {meaning}", f"# TYPE edgeattn_{name} {kind}"]
            lines += [f"edgeattn_{name}{f'{{{labels}}}' if labels else ''} {_number(value)}" for labels, value in known]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """As it is: a count beyond a million keeps its last digit."""
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(value: object) -> str:
    """A label's value, which any name may stand in."""
    return str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
