"""Prices: every engine against the reference, kept while the bundle is the same, with what stayed in float and why."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgeattn.bundle import Bundle, extend
from edgeattn.errors import DataError
from edgeattn.profiling import prices as module
from edgeattn.profiling.prices import find_bundles, joined, price, price_file, price_folder, read_prices


@pytest.fixture
def folder(tiny_int8_bundle: Bundle, tmp_path: Path) -> Path:
    """The empty slot and one attention, which are the same model here: their ratio is near 1."""
    for name in ("none", "se"):
        extend(tiny_int8_bundle, (), {}, path=tmp_path / "zoo" / f"{name}.edgeattn")
    return tmp_path / "zoo"


def test_every_engine_is_priced_against_the_reference(folder: Path) -> None:
    steps = list(price_folder(folder))
    assert [left for _, left in steps] == [1, 0]
    found = steps[-1][0]
    assert [(p.mechanism, p.engine) for p in found.prices] == [
        ("none", "onnxruntime"), ("none", "openvino"), ("se", "onnxruntime"), ("se", "openvino"),
    ]  # fmt: skip
    for p in found.prices:
        assert p.float_ms > 0
        assert p.int8_ms is not None
        assert 0.3 < p.float_over_none < 3.0  # the same model twice; no bar, only that it is a ratio of the two
        assert sum(sum(kinds.values()) for kinds in p.nodes.values()) > 0
        assert p.ships == ("int8" if p.int8_over_float < 1 else "float")
    assert read_prices(price_file(folder)) == found


def test_what_was_priced_is_kept_while_the_bundle_is_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(price_folder(folder))[-1][0]
    priced: list[str] = []
    monkeypatch.setattr(module, "price", lambda bundle, *a, **k: priced.append(bundle.name) or price(bundle, *a, **k))
    assert list(price_folder(folder))[-1][0].prices == first.prices
    assert priced == []
    list(price_folder(folder, resume=False))
    assert priced == ["none", "se"]


def test_only_those_named(folder: Path) -> None:
    shutil.copytree(folder / "se.edgeattn", folder / "eca.edgeattn")
    assert {p.mechanism for p in list(price_folder(folder, only=["eca"]))[-1][0].prices} == {"none", "eca"}


def test_a_folder_without_the_reference(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no none\.edgeattn.*edgeattn attentions --measure --build"):
        find_bundles(tmp_path)
    shutil.rmtree(folder / "none.edgeattn")
    with pytest.raises(DataError, match=r"none\.edgeattn"):
        next(price_folder(folder))


def test_a_price_list_that_cannot_be_read(folder: Path) -> None:
    file = price_file(folder)
    file.parent.mkdir()
    file.write_text("{")
    with pytest.raises(DataError, match="--fresh"):
        next(price_folder(folder))
    file.write_text('{"schema": "edgeattn.prices/9"}')
    with pytest.raises(DataError, match=r"schema edgeattn\.prices/9"):
        next(price_folder(folder))


def test_lists_of_several_boxes_are_joined_by_the_model(folder: Path) -> None:
    own = list(price_folder(folder))[-1][0]
    moved = [replace(p, digest="of another model") if p.mechanism == "se" else p for p in own.prices]
    other = replace(own, box="shelf", prices=tuple(moved))
    (folder / "prices" / "shelf.json").write_text(json.dumps(other.json()))
    found = {told.box: {p.mechanism for p in told.prices} for told in joined(folder)}
    assert found == {own.box: {"none", "se"}, "shelf": {"none"}}
