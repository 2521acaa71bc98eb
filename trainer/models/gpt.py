"""GPT: a decoder-only transformer as layers "embedding", "block.0" ... "block.{n-1}", "head".

The network is GPT-2's (Radford et al., 2019: pre-norm blocks, GELU, initial weights from a normal
distribution of 0.02), with learned or rotary positions (Su et al., 2021, "RoFormer") and a head that may
share the embedding's weight (Press and Wolf, 2017, "Using the Output Embedding to Improve Language Models").

All randomness comes from torch's default generators, which the caller seeds, and no module has state other
than its parameters. So a layer gives the same bits in whichever process it is built and run.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.activation import Activation
from trainer.config.models import TransformerConfig
from trainer.config.schema import GPTConfig
from trainer.data.dataset import Data
from trainer.data.masked import IGNORED
from trainer.errors import UserError
from trainer.models.decoding import KeysValues, Step
from trainer.models.model import Layer, Model, Tie

MASKED = IGNORED  # the target of a token that the loss ignores
STD = 0.02  # GPT-2's standard deviation of initial weights


def gpt(config: GPTConfig, data: Data) -> Model:
    """Return a GPT for the data's vocabulary: int64 tokens [batch, time] to logits [batch, time, vocabulary].

    `time` is at most `config.context`.

    Raises:
        UserError: The data is not tokens, its samples are longer than the context, or the heads do not
            divide the width.
    """
    vocabulary = checked_vocabulary(config, data)
    if not isinstance(data.training.inputs(np.zeros(1, dtype=np.int64)), Tensor):
        raise UserError(
            f"model.name={config.name} takes tokens alone, and this data gives more: use data=text, or "
            "model=bert or model=hf"
        )
    rotary = config.positions == "rotary"
    embedding = partial(
        Embedding,
        vocabulary=vocabulary,
        width=config.width,
        context=None if rotary else config.context,
        dropout=config.dropout,
    )
    block = partial(
        Block,
        width=config.width,
        heads=config.heads,
        blocks=config.blocks,
        dropout=config.dropout,
        rotary=rotary,
    )
    head = partial(Head, vocabulary=vocabulary, width=config.width)
    return transformer(config, embedding, block, head)


def transformer(
    config: TransformerConfig,
    embedding: Callable[[], nn.Module],
    block: Callable[[], nn.Module],
    head: Callable[[], nn.Module],
) -> Model:
    """Return a language model's layers, from what builds each kind, with a head tied as configured."""
    ties = (Tie("linear.weight", "embedding", "tokens.weight"),) if config.tied else ()
    return Model(
        layers=(
            Layer("embedding", embedding),
            *(Layer(f"block.{number}", block) for number in range(config.blocks)),
            Layer("head", head, ties),
        ),
        loss=TokenLoss(),
    )


def checked_vocabulary(config: TransformerConfig, data: Data) -> int:
    """Return the data's vocabulary after checking that the data and the configuration match.

    Raises:
        UserError: They do not: see `gpt`.
    """
    if data.vocabulary is None:
        raise UserError(
            f"model.name={config.name} needs text, but this data has no vocabulary: use data=text"
        )
    if config.width % config.heads:
        raise UserError(
            f"model.width={config.width} is not divisible by model.heads={config.heads}: "
            "make the width a multiple of the number of heads"
        )
    if config.positions == "rotary" and config.width // config.heads % 2:
        raise UserError(
            f"model.positions=rotary needs heads of even width, but model.width={config.width} and "
            f"model.heads={config.heads} give the odd width {config.width // config.heads}: change either"
        )
    longest = data.longest
    if longest is None:
        first = data.training.inputs(np.zeros(1, dtype=np.int64))
        longest = first.shape[-1] if isinstance(first, Tensor) else 0
    if longest > config.context:
        raise UserError(
            f"the data's samples have {longest} tokens (data.context), more than "
            f"model.context={config.context}: lower data.context or raise model.context"
        )
    return data.vocabulary


class Embedding(nn.Module):
    """Tokens to vectors, plus a learned vector for each position unless `context` is None (rotary)."""

    def __init__(self, *, vocabulary: int, width: int, context: int | None, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.tokens.weight, std=STD)
        self.positions = None if context is None else nn.Embedding(context, width)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=STD)
        self.dropout = nn.Dropout(dropout)

    def decode(self, tokens: Tensor, step: Step, past: KeysValues) -> Tensor:
        """Map the tokens of new columns."""
        embedded: Tensor = self.tokens(tokens)
        return embedded if self.positions is None else embedded + self.positions(step.positions)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map int64 tokens [batch, time] to [batch, time, width]."""
        embedded: Tensor = self.tokens(tokens)
        if self.positions is not None:
            embedded = embedded + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        dropped: Tensor = self.dropout(embedded)
        return dropped


class Block(nn.Module):
    """A pre-norm transformer block: attention, then a GELU MLP four times as wide, both residual.

    `blocks` is the number of blocks in the model. Each adds to the residual stream twice, so GPT-2 scales the
    initial weights of these two projections by 1 / sqrt(2 * blocks).
    """

    def __init__(self, *, width: int, heads: int, blocks: int, dropout: float, rotary: bool) -> None:
        super().__init__()
        residual_std = STD / math.sqrt(2 * blocks)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(
            width=width, heads=heads, dropout=dropout, rotary=rotary, residual_std=residual_std
        )
        self.network_norm = nn.LayerNorm(width)
        self.widen = linear(width, 4 * width)
        self.narrow = linear(4 * width, width, std=residual_std)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, width] to the same shape; a position attends to itself and to earlier ones."""
        return self._network(x + self.dropout(self.attention(self.attention_norm(x))))

    def decode(self, x: Tensor, step: Step, past: KeysValues) -> Tensor:
        """Map new columns, which attend to those of their text."""
        return self._network(x + self.attention.decode(self.attention_norm(x), step, past))

    def _network(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.dropout(self.narrow(F.gelu(self.widen(self.network_norm(x)))))
        return output


class Attention(nn.Module):
    """Causal multi-head self-attention, with dropout on the attention weights."""

    def __init__(self, *, width: int, heads: int, dropout: float, rotary: bool, residual_std: float) -> None:
        super().__init__()
        self.heads = heads
        self.rotary = rotary
        self.dropout = dropout
        self.query_key_value = linear(width, 3 * width)
        self.project = linear(width, width, std=residual_std)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, width] to the same shape."""
        query, key, value = self._heads_of(x)
        if self.rotary:
            query, key = rotate(query), rotate(key)
        attended = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        return self._projected(attended)

    def decode(self, x: Tensor, step: Step, past: KeysValues) -> Tensor:
        """Map new columns, which attend to those of their text."""
        query, key, value = self._heads_of(x)
        if self.rotary:
            positions = step.positions[:, None]  # of all heads
            query, key = rotate(query, positions), rotate(key, positions)
        key, value = past.append(key, value)
        return self._projected(F.scaled_dot_product_attention(query, key, value, attn_mask=step.attention))

    def _heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each [batch, heads, time, head width]."""
        batch, time, width = x.shape
        joined = self.query_key_value(x).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        return query, key, value

    def _projected(self, attended: Tensor) -> Tensor:
        projected: Tensor = self.project(attended.transpose(1, 2).flatten(2))
        return projected


class Head(nn.Module):
    """The final layer norm and the projection to the vocabulary."""

    def __init__(self, *, vocabulary: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, width] to logits [batch, time, vocabulary]."""
        logits: Tensor = self.linear(self.norm(x))
        return logits

    def decode(self, x: Tensor, step: Step, past: KeysValues) -> Tensor:
        """Map the last column."""
        return self(x[:, -1:])  # type: ignore[no-any-return]


class TokenLoss:
    """Cross-entropy of the next token, summed over the targets that are not `MASKED`."""

    def count(self, target: Activation) -> int:
        """Return the number of targets that are not masked."""
        return int(torch.count_nonzero(cast(Tensor, target) != MASKED))

    def __call__(self, output: Activation, target: Activation) -> Tensor:
        """Return the sum, given logits [batch, time, vocabulary] and int64 targets [batch, time]."""
        logits, tokens = cast(Tensor, output), cast(Tensor, target)
        # A sum in half precision would lose most of its digits.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), ignore_index=MASKED, reduction="sum")


def rotate(x: Tensor, positions: Tensor | None = None) -> Tensor:
    """Rotate each pair of features by an angle that grows with the position (RoFormer's rotary embedding).

    The product of a rotated query and a rotated key then depends only on the distance of their positions.
    The pairs are (i, i + half), as in GPT-NeoX and Llama. The angles are computed on every call, in float32:
    they cost little compared with the attention, and there is no buffer to cast, move or save.

    Args:
        x: [..., time, head width], the head width even.
        positions: [..., time]; None: from 0 on.
    """
    time, width = x.shape[-2:]
    powers = torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width
    positions = torch.arange(time, device=x.device) if positions is None else positions
    angles = positions[..., None].float() * 10_000.0**-powers
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)


def linear(inputs: int, outputs: int, *, std: float = STD, bias: bool = True) -> nn.Linear:
    """Return a linear layer with normally distributed weights and a zero bias."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(linear.weight, std=std)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
