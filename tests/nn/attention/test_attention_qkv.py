"""QueryKeyValue: the articles' formula by loops, and what its map shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mechanisms import Array, C, check_equals_naive, check_export, check_shapes_and_gradient, planted
from tokens import attended, identity, places, projected, share_of_the_planted
from torch import nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.qkv import QueryKeyValue


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    q, k, v = (places(projected(layer, x)) for layer in (module.query, module.key, module.value))
    mixed, received = attended(q, k, v, module.query.out_channels**-0.5)
    return x + projected(module.project, mixed.reshape(x.shape)), received.reshape(x.shape[1:])


@pytest.mark.parametrize("size", [(6, 5), (3, 7), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(QueryKeyValue(C), naive, size=size)


def test_queries_are_a_quarter_as_wide_unless_told_otherwise() -> None:
    assert [QueryKeyValue(c).key.out_channels for c in (128, 16)] == [32, 8]
    assert QueryKeyValue(16, qk_dim=4).query.out_channels == 4
    with pytest.raises(SpecError, match="qk_dim=0 must be 1 at least"):
        QueryKeyValue(16, qk_dim=0)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(QueryKeyValue(C))


def test_starts_near_the_identity() -> None:
    module, x = QueryKeyValue(C), torch.randn(4, C, 6, 5)
    assert 0.1 < (module(x) - x).std() / x.std() < 0.3


def test_export(tmp_path: Path) -> None:
    for operators in check_export(QueryKeyValue(C), tmp_path):
        assert (operators.count("MatMul"), operators.count("Softmax")) == (2, 1)


def test_map_lights_up_where_something_stands() -> None:
    module = QueryKeyValue(C, qk_dim=C).eval()
    identity(module.query)
    identity(module.key)
    map_HW = attend(module, planted())[1][0].detach()
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2, 5] = False
    share = share_of_the_planted(C * C**-0.5)
    assert float(map_HW[2, 5]) == pytest.approx(share, rel=1e-4)
    assert share > 2 / 64
    assert map_HW[outside].numpy() == pytest.approx((1 - share) / 63, rel=1e-4)
