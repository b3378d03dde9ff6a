"""Global context: one weighted mean of all places, through a perceptron, is added to every place.

Paper: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond (Cao et al. 2019, arXiv:1904.11492).
    y = x + W2 relu(BN(W1 sum_j a_j x_j)), a = softmax_j(w . x_j) over places
`GlobalContextSigmoid` takes a_j = s(w . x_j + b) / HW instead, which needs no softmax and no reshape; it is another function, to be
trained anew.
Deviations: BatchNorm in the place of the paper's LayerNorm, so that it folds into W1. The squeeze is a multiple of 8 and at
least 8; w has no bias, which softmax would not see. W2 starts at zero, as in the authors' code.
Map: the weights: a, which sums to 1, and s(w . x_j + b) of the second. In training BatchNorm needs two pictures in a batch.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeattn.nn.attention._parts import gate, squeezed_width
from edgeattn.nn.layers import ConvNorm, global_mean


class _Context(nn.Module):
    """x + W2 relu(BN(W1 context)), whatever the context."""

    first_stage: int = 2

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        width = squeezed_width(channels, reduction)
        self.reduce: nn.Module = ConvNorm(channels, width, 1)
        self.expand = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.expand.weight)
        assert self.expand.bias is not None
        nn.init.zeros_(self.expand.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Add the context to every place."""
        return self.attend(x_BCHW)[0]

    def attend(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give the output and the map (B, H, W)."""
        context_BC11, weights_B1HW = self._context(x_BCHW)
        return x_BCHW + self.expand(self.reduce(context_BC11).relu()), weights_B1HW.squeeze(1)

    def _context(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class GlobalContext(_Context):
    """Global context, softmax over places: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__(channels, reduction)
        self.key = nn.Conv2d(channels, 1, 1, bias=False)

    def _context(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        weights_BN1 = self.key(x_BCHW).flatten(2).softmax(2).transpose(1, 2)
        context_BC11 = (x_BCHW.flatten(2) @ weights_BN1).unsqueeze(3)
        return context_BC11, weights_BN1.reshape(-1, 1, *x_BCHW.shape[2:])


class GlobalContextSigmoid(_Context):
    """Global context, sigmoid-weighted mean: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__(channels, reduction)
        self.key = nn.Conv2d(channels, 1, 1)

    def _context(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        weights_B1HW = gate(self.key(x_BCHW))
        return global_mean(x_BCHW * weights_B1HW), weights_B1HW
