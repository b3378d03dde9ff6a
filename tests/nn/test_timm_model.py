"""Models of timm as students and teachers, in the optional environment that has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from with_timm import timm_module

from edgeattn.errors import DataError, NameNotFoundError
from edgeattn.nn import build_model
from edgeattn.train import Recipe
from edgeattn.train.teachers import open_teacher
from edgeattn.train.watch import watch

NAME = "mobilenetv3_small_050"


def test_a_model_of_timm_sees_what_timm_shows_it(tmp_path: Path) -> None:
    timm = timm_module("timm")
    theirs = timm.create_model(NAME, num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = build_model(f"timm:{NAME}@{tmp_path / 'w.pth'}", 3).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).float()
    mean, std = (torch.tensor(theirs.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    x = (pixels - 128) / 128
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs((pixels / 255 - mean) / std), atol=1e-4, rtol=1e-4)
        seen = watch(ours, x, features=True)
        torch.testing.assert_close(seen.answer, ours(x))
        assert seen.features is not None
        assert seen.features.ndim == 4
        teacher = open_teacher(Recipe("none", teacher=f"timm:{NAME}@{tmp_path / 'w.pth'}"), ("a", "b", "c"))
        torch.testing.assert_close(teacher(x), ours(x))
    assert not any(p.requires_grad for p in teacher.parameters())


def test_timm_models_that_are_not_there(tmp_path: Path) -> None:
    timm_module("timm")
    with pytest.raises(NameNotFoundError, match="mobilenetv3_small_050"):
        build_model("timm:mobilenetv3_small_05", 3)
    with pytest.raises(DataError, match=r"there are no weights nowhere\.pth"):
        build_model(f"timm:{NAME}@nowhere.pth", 3)
    with pytest.raises(DataError, match="has learnt nothing; name its checkpoint"):
        open_teacher(Recipe("none", teacher=f"timm:{NAME}"), ("a", "b"))
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="are not those of"):
        build_model(f"timm:{NAME}@{tmp_path / 'w.pth'}", 3)
