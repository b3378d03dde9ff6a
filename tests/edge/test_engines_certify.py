"""A device is used once its answers are the processor's. No NPU is at hand: devices here are the CPU itself, and one that lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.bundle import Bundle
from edgeattn.camera.files import Folder
from edgeattn.camera.pipeline import Pipeline
from edgeattn.engines import certify, open_artefact
from edgeattn.engines.base import Array, Engine
from edgeattn.engines.certify import OpenOn, open_certified
from edgeattn.errors import BundleError, EngineError
from edgeattn.spec import Artefact


class Device:
    """Another device: the processor's engine under another name, whose answers are changed on their way."""

    name = "openvino"
    nodes: Mapping[str, Mapping[str, int]] = {}
    integer_layers: frozenset[str] = frozenset()
    executed_precision = "not told"

    def __init__(self, engine: Engine, change: Callable[[Array], Array], driver: str) -> None:
        self.engine, self.change, self.calls, self.closed = engine, change, 0, False
        self.precision, self.threads = engine.precision, engine.threads
        told = {
            "device": "NPU",
            "device_name": "a lying device",
            "driver": driver,
            "compile_ms": 812.0,
            "from_cache": False,
        }
        self.details: Mapping[str, Any] = told

    def infer(self, image: Array) -> dict[str, Array]:
        self.calls += 1
        return {name: self.change(value) for name, value in self.engine.infer(image).items()}

    def close(self) -> None:
        self.engine.close()
        self.closed = True


def a_device(change: Callable[[Array], Array], driver: str = "1.0") -> tuple[OpenOn, list[Device]]:
    opened: list[Device] = []

    def open_on(bundle: Bundle, artefact: Artefact, device: str, maps: bool) -> Engine:
        opened.append(Device(open_artefact(bundle, artefact, maps=maps), change, driver))
        return opened[-1]

    return open_on, opened


def right(value: Array) -> Array:
    """As half precision gives it."""
    return value.astype(np.float16).astype(np.float32)


def wrong(value: Array) -> Array:
    """The best class stays the best: only the figures are off."""
    return value * np.float32(1.1)


def not_a_number(value: Array) -> Array:
    return np.full_like(value, np.nan)


def test_a_device_that_answers_right_is_certified_once(
    tiny_int8_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path))
    open_on, devices = a_device(right)
    engine, certificate, line = open_certified(tiny_int8_bundle, "NPU", maps=True, open_on=open_on)
    assert (certificate.verdict, certificate.agreement, certificate.n) == ("passed", 1.0, 24)
    assert set(certificate.errors) == {"logits", "map_0"}
    assert 0 < certificate.worst[1] < 0.001
    assert devices[0].calls == 24
    assert "a lying device" in line
    assert line.endswith("checked now; compiled in 812 ms")
    engine.close()
    engine, again, line = open_certified(tiny_int8_bundle, "NPU", maps=True, open_on=open_on)
    assert (again, devices[1].calls) == (certificate, 0)
    assert "as it did before" in line
    engine.close()
    for changed, options in ((a_device(right, "1.1"), {"maps": True}), (a_device(right), {"maps": False})):
        engine, _, line = open_certified(tiny_int8_bundle, "NPU", open_on=changed[0], **options)
        assert changed[1][0].calls == 24, "another driver, or another graph, is checked anew"
        engine.close()


@pytest.mark.parametrize(
    ("change", "said"), [(wrong, r"by 10 % on 24 golden inputs .*3 % is allowed"), (not_a_number, "by inf %")]
)
def test_a_device_that_answers_wrongly_is_refused_each_time(
    change: Callable[[Array], Array],
    said: str,
    tiny_int8_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path))
    open_on, devices = a_device(change)
    for _ in range(2):
        with pytest.raises(EngineError, match=f"{said}.*--device CPU"):
            open_certified(tiny_int8_bundle, "NPU", open_on=open_on)
    assert all(device.closed for device in devices)


def test_a_run_takes_the_device_or_says_why_not(
    tiny_int8_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.full((40, 40, 3), 90, np.uint8))
    for change, reason in ((right, ""), (wrong, "wrongly")):
        open_on, devices = a_device(change)
        monkeypatch.setattr(certify, "_open_openvino", open_on)
        monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path / reason))
        pipeline = Pipeline(tiny_int8_bundle, Folder(tmp_path), device="npu", precision="int8")
        if reason:
            with pytest.raises(EngineError, match=reason), pipeline:
                pass
            continue
        with pipeline:
            assert [result.prediction.label for result in pipeline]
        assert devices[0].calls == 26, "24 golden inputs, one to warm up, one picture"
        assert pipeline.certificate
        assert pipeline.certificate.precision == "int8"
    with (
        pytest.raises(EngineError, match="leave out --engine"),
        Pipeline(tiny_int8_bundle, Folder(tmp_path), device="NPU", engine="onnxruntime"),
    ):
        pass


def test_what_is_missing_is_said(tiny_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="device 'NPU' is not on this machine; OpenVINO sees: CPU"):
        open_certified(tiny_bundle, "NPU")
    with pytest.raises(BundleError, match="holds no OpenVINO file in int8 for NPU"):
        open_certified(tiny_bundle, "NPU", precision="int8")
