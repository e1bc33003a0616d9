"""A decoder for sequences of tokens."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

_STD = 0.02  # of the initial weights


class Transformer(nn.Module):
    """A causal decoder: each position's outputs depend on the tokens up to that position only.

    The input is (B, T) token ids, the output (B, T, out_features). Positions are learned. Each block has two residual
    branches, attention and an MLP that is four times as wide. Both begin with a normalisation (Xiong et al. 2020), and
    no layer has a bias. Dropout acts on the embeddings and on the output of each branch.

    Weights are normal with a standard deviation of 0.02, and those that end a branch are divided by the root of the
    number of branches (Radford et al. 2019).
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        n_tokens: int | None = None,
        width: int = 128,
        n_layers: int = 2,
        n_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        """Make the model.

        Args:
            in_shape: (T,), the length of a sample.
            out_features: how many outputs a position has.
            n_tokens: how many different tokens there are; None for data that have none, which are refused.
            width: the size of an embedding.
            n_layers: how many blocks there are.
            n_heads: of each attention; they share the width.
            dropout: the probability that a number is dropped.

        Raises:
            ValueError: the samples are no tokens, a size is below 1, or n_heads does not divide width.
        """
        super().__init__()
        if n_tokens is None or len(in_shape) != 1:
            raise ValueError("needs sequences of token ids, such as those of data=text; try model=mlp")
        for name, size in (("width", width), ("n_layers", n_layers), ("n_heads", n_heads)):
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}")
        if width % n_heads:
            raise ValueError(f"n_heads is {n_heads}, which does not divide the width {width}")
        self.tokens = nn.Embedding(n_tokens, width)
        self.positions = nn.Parameter(torch.empty(in_shape[0], width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(_Block(width, n_heads, dropout) for _ in range(n_layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, out_features, bias=False)
        self._initialise(n_branches=2 * n_layers)

    def _initialise(self, n_branches: int) -> None:
        nn.init.normal_(self.positions, std=_STD)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_STD / math.sqrt(n_branches) if name.endswith("out") else _STD)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.dropout(self.tokens(tokens) + self.positions[: tokens.shape[1]])
        return self.head(self.norm(self.blocks(x)))


class _Block(nn.Module):
    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention(width, n_heads)
        self.mlp = _MLP(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for branch, norm, dropout in zip((self.attention, self.mlp), self.norms, self.dropouts, strict=True):
            x = x + dropout(branch(norm(x)))
        return x


class _Attention(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).movedim(1, -2)  # (B, 3, n_heads, T, width of a head)
        q, k, v = heads.unbind(1)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class _MLP(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.activation = nn.GELU()
        self.out = nn.Linear(4 * width, width, bias=False)
