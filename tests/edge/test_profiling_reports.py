from __future__ import annotations

import dataclasses
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import typer
from typer.testing import CliRunner

from edgeattn.bundle import Bundle
from edgeattn.cli.profile import profile as profile_verb
from edgeattn.engines.base import Layer
from edgeattn.profiling.figures import latency_rows, notes
from edgeattn.profiling.markdown import markdown_of
from edgeattn.profiling.page import page, worst_frames
from edgeattn.profiling.report import STAGES, Report, Result
from edgeattn.profiling.trace import trace_events
from edgeattn.timing import environment


def a_result(latencies_ms: Any, engine: str = "openvino", precision: str = "int8", **more: Any) -> Result:
    values = np.asarray(latencies_ms, np.float64)
    frames = max(1, len(values) // 8)
    stages = {stage: np.linspace(1, 2, frames) * place for place, stage in enumerate(STAGES, start=1)}
    ends = np.cumsum(sum(stages.values()) * 1e6)
    starts, before = {}, np.concatenate([[0], ends[:-1]])
    for stage, ms in stages.items():
        starts[stage] = before.astype(np.int64)
        before = before + ms * 1e6
    return Result(
        engine=engine,
        precision=precision,
        executed_precision="int8+f32",
        threads=1,
        load_ms=120.0,
        first_ms=4.0,
        warmup=20,
        latencies_ms=values,
        stages_ms=stages,
        starts_ns=starts,
        layers=(Layer(("conv",), "Convolution", "int8"), Layer(("softmax",), "Softmax", "f32")),
        details={"device": "CPU", "version": "1.2", "sha256": "ab" * 32},
        **more,
    )


def a_report(*results: Result, mode: str = "single") -> Report:
    return Report(
        bundle="signs <&>",
        digest="0" * 16,
        model={"digest": "1" * 16, "input": [1, 32, 32, 3], "task": "classify", "labels": 3, "attention": []},
        source="built-in frames",
        results=results,
        skipped=(),
        environment=environment(),
        memory={"rss_mb": 100.0},
        seconds=10.0,
        waited_share=0.0,
        other_cores=0.0,
        stolen_cores=0.0,
        readings=(),
        stopped_early=False,
        mode=mode,
    )


class Page(HTMLParser):
    """What a page holds, and whether its tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in ("meta", "br", "img", "rect", "line", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag


def test_page_is_one_file_with_plots_and_worst_frames() -> None:
    rng = np.random.default_rng(0)
    report = a_report(a_result(rng.lognormal(0, 0.3, 800)), a_result(rng.lognormal(0, 0.3, 800), "onnxruntime"))
    text = page(report, ["budget failed: openvino int8: p99 3 ms, at most 2 ms"])
    found = Page(text)
    assert found.open == []
    assert found.outside == []  # nothing is fetched
    assert found.seen.count("svg") == 3 + 2  # tail, time and stages; the worst frames of each
    assert found.seen.count("polyline") == 4
    assert "signs &lt;&amp;&gt;" in text
    assert "<b>budget failed: openvino int8" in text
    assert "1 Convolution" in text
    assert "nodes in int8" in text


def test_every_outlier_is_in_the_plot_of_a_long_series() -> None:
    values = np.ones(100_000)
    values[77_777] = 50.0
    text = page(a_report(a_result(values)), [])
    points = re.findall(r'<polyline points="([^"]+)"', text)
    highest = [min(float(point.split(",")[1]) for point in line.split()) for line in points]
    assert max(highest) - min(highest) < 0.2  # the outlier reaches the top in both


def test_worst_frames_come_first_and_tell_the_wait() -> None:
    result = a_result(np.ones(80))
    rows = worst_frames(result)
    assert rows[0][0] == "frame 9"
    assert len(rows) == 5
    assert [stage for stage, _ in rows[0][1]] == list(STAGES)
    ages = np.full(10, 40.0)
    ages[3] = 700.0
    aged = dataclasses.replace(result, ages_ms=ages, mode="paced", age_from="due")
    name, stages = worst_frames(aged)[0]
    assert name == "frame 3"
    assert sum(ms for _, ms in stages) == np.float64(700)
    assert stages[0][0] == "wait"
    assert stages[0][1] > 600


def test_trace_holds_every_stage_in_microseconds() -> None:
    result = a_result(np.ones(80))
    told = json.loads(json.dumps(trace_events(a_report(result)), allow_nan=False))
    slices = [event for event in told["traceEvents"] if event["ph"] == "X"]
    assert len(slices) == 10 * len(STAGES)
    assert slices[0]["ts"] == 0
    first = [each for each in slices if each["args"]["frame"] == 0]
    assert [each["name"] for each in first] == list(STAGES)
    for before, after in itertools.pairwise(first):
        assert abs(before["ts"] + before["dur"] - after["ts"]) < 0.01
    names = {event["args"]["name"] for event in told["traceEvents"] if event["ph"] == "M"}
    assert names == {"edgeattn profile signs <&>", "openvino int8"}


def test_markdown_is_a_table_of_github() -> None:
    text = markdown_of(a_report(a_result(np.ones(700)), a_result(np.ones(700), "onnxruntime")), ["budget passed: x"])
    lines = text.splitlines()
    assert "- ✅ budget passed: x" in lines
    at = lines.index("| | openvino int8 | onnxruntime int8 |")
    assert lines[at + 1] == "|---|---:|---:|"
    for line in lines[at : lines.index("", at)]:
        assert line.count("|") == 4
    assert any(line.startswith("| Median | 1.00") for line in lines)


def test_rows_leave_out_what_nobody_has() -> None:
    labels = [row.label for row in latency_rows(a_report(a_result([1.0])))]
    assert "jitter" not in labels
    assert "p99.9" not in labels
    assert "RSS alone, MB" not in labels
    assert "p99.9" in [row.label for row in latency_rows(a_report(a_result(np.ones(7000))))]


def test_notes_tell_what_the_kernel_does_not() -> None:
    report = dataclasses.replace(a_report(a_result(np.ones(700))), waited_share=None)
    assert report.valid
    assert "whether other load disturbed this is not known: no /proc/pressure/cpu here" in list(notes(report))


def test_verb_writes_every_report(tiny_bundle: Bundle, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(profile_verb)
    files = {kind: tmp_path / f"report.{kind}" for kind in ("html", "trace", "markdown", "json")}
    options = [part for kind, path in files.items() for part in (f"--{kind}", str(path))]
    outcome = CliRunner().invoke(app, [str(tiny_bundle.path), "--samples", "72", *options])
    assert outcome.exit_code == 0, outcome.output
    assert Page(files["html"].read_text()).open == []
    assert json.loads(files["trace"].read_text())["traceEvents"]
    assert files["markdown"].read_text().startswith("### tiny: one inference")
    written = json.loads(files["json"].read_text())
    assert written["sensors"]["temperature_c"]
    assert written["memory"]["rss_mb"] > 10
    assert all(f"report: {path}" in outcome.output for path in files.values())
