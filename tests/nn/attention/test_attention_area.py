"""AreaAttention: the paper's formula by loops, and what its map shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mechanisms import Array, C, check_equals_naive, check_export, check_shapes_and_gradient, planted
from tokens import attended, identity, in_heads, projected, share_of_the_planted
from torch import nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.area import AreaAttention

HEADS, D = 2, C // 2
STRIPS = {(6, 5): 3, (4, 4): 4, (3, 7): 3, (7, 7): 1, (2, 5): 2, (1, 1): 1, (8, 3): 4}


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    strips, places = STRIPS[x.shape[1:]], x.shape[1] * x.shape[2]
    q, k, value = (projected(layer, x) for layer in (module.query, module.key, module.value))
    mixed, received = np.zeros((C, places)), np.zeros(places)
    for s in range(strips):
        strip = slice(s * places // strips, (s + 1) * places // strips)
        for h in range(HEADS):
            each = [in_heads(u, HEADS)[h][:, strip] for u in (q, k, value)]
            mixed[h * D : (h + 1) * D, strip], share = attended(*each, D**-0.5)
            received[strip] += share / (HEADS * strips)
    summed = mixed.reshape(x.shape) + projected(module.position, value)
    return x + projected(module.project, summed), received.reshape(x.shape[1:])


@pytest.mark.parametrize("size", list(STRIPS))
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(AreaAttention(C, num_heads=HEADS), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(AreaAttention(C, num_heads=HEADS))


def test_starts_near_the_identity() -> None:
    module, x = AreaAttention(C), torch.randn(4, C, 6, 5)
    assert 0.1 < (module(x) - x).std() / x.std() < 0.3


def test_export(tmp_path: Path) -> None:
    for operators in check_export(AreaAttention(C, num_heads=HEADS), tmp_path):
        assert (operators.count("MatMul"), operators.count("Softmax")) == (2, 1)
    for path in tmp_path.rglob("float.onnx"):
        graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
        ranks = [len(value.type.tensor_type.shape.dim) for value in graph.value_info]
        assert ranks
        assert max(ranks) <= 4


def test_arguments() -> None:
    with pytest.raises(SpecError, match=r"^area: num_heads=7 must divide the 16 channels; the nearest is 8$"):
        AreaAttention(C, num_heads=7)
    with pytest.raises(SpecError, match=r"^area: area=0 must be 1 at least$"):
        AreaAttention(C, area=0)


def test_map_lights_up_where_something_stands() -> None:
    module = AreaAttention(C, num_heads=HEADS).eval()
    identity(module.query)
    identity(module.key)
    map_HW = attend(module, planted())[1][0].detach()
    share = share_of_the_planted(D * D**-0.5, places=16)
    assert float(map_HW[2, 5]) == pytest.approx(share / 4, rel=1e-4)
    rest_of_strip = [float(map_HW[i, j]) for i in (2, 3) for j in range(8) if (i, j) != (2, 5)]
    assert rest_of_strip == pytest.approx([(1 - share) / 15 / 4] * 15, rel=1e-4)
    others = torch.cat([map_HW[:2], map_HW[4:]]).numpy()  # nothing crosses a strip's border
    assert others == pytest.approx(1 / 64, rel=1e-4)
