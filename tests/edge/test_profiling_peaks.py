"""The roof: a short measurement of what this processor can do at best."""

from __future__ import annotations

import pytest

from edgeattn.engines.openvino import computes_bf16
from edgeattn.errors import EngineError
from edgeattn.profiling.peaks import Peaks, measure_peaks


def test_a_share_of_the_peak() -> None:
    peaks = Peaks(1, f32_gops=100.0, bf16_gops=None, int8_gops=400.0, memory_gb_s=10.0)
    assert peaks.efficiency(macs=5e8, ms=20.0, precision="float") == pytest.approx(0.5)  # 1 GOP in 20 ms is 50 GOP/s
    assert peaks.efficiency(macs=5e8, ms=20.0, precision="int8") == pytest.approx(0.125)
    assert peaks.efficiency(macs=5e8, ms=20.0, precision="bf16") is None


def test_this_machine_has_peaks() -> None:
    peaks = measure_peaks(threads=1, seconds=0.3)
    assert peaks.threads == 1
    assert peaks.f32_gops > 1
    assert peaks.memory_gb_s > 0.1
    assert (peaks.bf16_gops is None) <= (not computes_bf16())
    assert peaks.int8_gops is None or peaks.int8_gops > 1
    with pytest.raises(EngineError, match="0 threads"):
        measure_peaks(threads=0)
