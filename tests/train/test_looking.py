"""`tools/looking.py`: what was measured before is read again for the same options alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeattn.train import Recipe

TOOLS = Path(__file__).parents[2] / "tools"


def test_what_was_measured_with_other_options_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    import looking

    asked: list[tuple[Any, ...]] = []

    def measure(*options: Any) -> dict[str, float]:
        asked.append(options)
        return {"top1": float(len(asked))}

    monkeypatch.setattr(looking, "measure", measure)
    (tmp_path / "measured.json").write_text('{"top1": 0.5}')  # as it was written without the options
    recipe = Recipe("cards", supervise="kl", supervise_weight=10.0)
    assert looking.measured(recipe, tmp_path, 1000) == looking.measured(recipe, tmp_path, 1000) == {"top1": 1.0}
    assert looking.measured(replace(recipe, supervise_weight=5.0), tmp_path, 1000) == {"top1": 2.0}
    assert looking.measured(replace(recipe, supervise_weight=5.0), tmp_path, 500) == {"top1": 3.0}
    assert len(asked) == 3
