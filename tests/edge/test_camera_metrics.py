"""The text for Prometheus."""

from __future__ import annotations

import re

from edgeattn.camera.metrics import metrics


def test_metrics_leave_out_what_is_not_known() -> None:
    none = {"p50": None, "p90": None, "p99": None}
    status = {"frames": 0, "dropped": {}, "reconnects": None, "state": "starting", "fps": None, "age_ms": none,
              "infer_ms": none, "browsers": 0}  # fmt: skip
    samples = [line for line in metrics(status).splitlines() if not line.startswith("#")]
    assert samples == ["edgeattn_frames_total 0", "edgeattn_up 0", "edgeattn_browsers 0"]


SAMPLE = re.compile(
    r'edgeattn_[a-z_]+(\{[a-z_]+="([^"\\\n]|\\["\\n])*"(,[a-z_]+="([^"\\\n]|\\["\\n])*")*\})? -?[0-9.e+-]+'
)


def test_metrics_are_text_that_prometheus_reads() -> None:
    """Every sample under its TYPE, names in labels escaped, and a count beyond a million to its last digit."""
    known = {"p50": 1.5, "p90": 2.0, "p99": None}
    shadow = {"checked": 40, "differed": 3, "map_js": 0.0125, "map_rank": None, "verdict": "failed"}
    status = {"frames": 12_345_678, "dropped": {"replaced": 2}, "reconnects": 1, "state": "hung", "fps": 29.97, "age_ms": known,
              "infer_ms": known, "browsers": 0, "bundle": 'a "b\\c', "engine": "openvino", "precision": "int8",
              "fallback": "drift", "shadow": shadow, "change_counts": {"reload taken": 2}}  # fmt: skip
    told, samples = "", {}
    for line in metrics(status).splitlines():
        if line.startswith("# TYPE "):
            told = line.split()[2]
        elif not line.startswith("# HELP "):
            assert SAMPLE.fullmatch(line), line
            name, _, value = line.rpartition(" ")
            assert name.partition("{")[0] == told
            samples[name] = value
    assert samples["edgeattn_frames_total"] == "12345678"
    assert samples["edgeattn_up"] == "0", "a loop that stands"
    assert samples['edgeattn_model_info{bundle="a \\"b\\\\c",engine="openvino",precision="int8"}'] == "1"
    assert samples['edgeattn_changes_total{change="reload taken"}'] == "2"
    assert (samples["edgeattn_shadow_checked_total"], samples["edgeattn_shadow_differed_total"]) == ("40", "3")
    assert (samples["edgeattn_shadow_map_js"], samples["edgeattn_shadow_broken"]) == ("0.0125", "1")
    assert (samples["edgeattn_fallback"], samples["edgeattn_fps"]) == ("1", "29.97")
    assert "edgeattn_shadow_map_rank" not in samples
