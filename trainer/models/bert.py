"""BERT: a bidirectional transformer as layers "embedding", "block.0" ... "block.{n-1}", "head".

The network is that of Devlin et al., 2018 (https://arxiv.org/abs/1810.04805): with `norm=post`, learned
positions and the same weights it is transformers' `BertForMaskedLM`. With `norm=pre` a block normalises what
it computes from (Xiong et al., 2020, https://arxiv.org/abs/2002.04745), as transformers'
`RobertaPreLayerNormForMaskedLM` does; such a network trains with a higher learning rate. With rotary
positions it finds neighbours early; learned ones first have to learn where these are.

Between layers travel the hidden states [batch, time, width] and, where samples are padded, the mask.
"""

from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.activation import Activation
from trainer.config.models import BertConfig
from trainer.data.dataset import Data
from trainer.models.gpt import STD, checked_vocabulary, linear, rotate, transformer
from trainer.models.model import Model

_EPSILON = 1e-12  # of BERT's normalisations
Hidden: TypeAlias = "Tensor | tuple[Tensor, Tensor]"  # hidden states, and the mask of padded samples


def bert(config: BertConfig, data: Data) -> Model:
    """Return a BERT for the data's vocabulary: tokens [batch, time] to logits [batch, time, vocabulary].

    The inputs are the tokens (int64), or a dict of `input_ids` and, where there are, `token_type_ids` (the
    segments) and `attention_mask` (1 for tokens, 0 for padding): what transformers' models take.

    Raises:
        UserError: The data is not tokens, its samples are longer than the context, or the heads do not
            divide the width.
    """
    vocabulary = checked_vocabulary(config, data)
    rotary = config.positions == "rotary"
    pre = config.norm == "pre"
    embedding = partial(
        Embedding,
        vocabulary=vocabulary,
        width=config.width,
        context=None if rotary else config.context,
        segments=config.segments,
        dropout=config.dropout,
    )
    block = partial(
        Block, width=config.width, heads=config.heads, dropout=config.dropout, rotary=rotary, pre=pre
    )
    head = partial(Head, vocabulary=vocabulary, width=config.width, pre=pre)
    return transformer(config, embedding, block, head)


class Embedding(nn.Module):
    """The sum of a token's vector, its segment's and, unless `context` is None (rotary), its position's."""

    def __init__(
        self, *, vocabulary: int, width: int, context: int | None, segments: int, dropout: float
    ) -> None:
        super().__init__()
        self.tokens = _embedding(vocabulary, width)
        self.segments = _embedding(segments, width)
        self.positions = None if context is None else _embedding(context, width)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Activation) -> Hidden:
        """Map int64 tokens [batch, time], or a dict, to hidden states, and the mask if there is one."""
        named: dict[str, Tensor] = inputs if isinstance(inputs, dict) else {"input_ids": inputs}
        tokens = named["input_ids"]
        segments = named.get("token_type_ids")
        x: Tensor = self.tokens(tokens)
        x = x + (self.segments.weight[0] if segments is None else self.segments(segments))
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.dropout(self.norm(x))
        mask = named.get("attention_mask")
        return x if mask is None else (x, mask.bool())


class Block(nn.Module):
    """A transformer block: attention, then a GELU MLP four times as wide, both residual.

    Args:
        width: Size of the hidden states.
        heads: Attention heads.
        dropout: Share of what it adds, and of the attention weights, that dropout zeroes.
        rotary: Whether positions are rotary.
        pre: Whether it normalises before it computes; otherwise after it has added.
    """

    def __init__(self, *, width: int, heads: int, dropout: float, rotary: bool, pre: bool) -> None:
        super().__init__()
        self.pre = pre
        self.attention = Attention(width=width, heads=heads, dropout=dropout, rotary=rotary)
        self.attention_norm = nn.LayerNorm(width, eps=_EPSILON)
        self.widen = linear(width, 4 * width)
        self.narrow = linear(4 * width, width)
        self.network_norm = nn.LayerNorm(width, eps=_EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Hidden) -> Hidden:
        """Map hidden states to the same shape; a position attends to all that are not padding."""
        x, mask = hidden if isinstance(hidden, tuple) else (hidden, None)
        if self.pre:
            x = x + self.dropout(self.attention(self.attention_norm(x), mask))
            x = x + self.dropout(self._network(self.network_norm(x)))
        else:
            x = self.attention_norm(self.dropout(self.attention(x, mask)) + x)
            x = self.network_norm(self.dropout(self._network(x)) + x)
        return x if mask is None else (x, mask)

    def _network(self, x: Tensor) -> Tensor:
        narrowed: Tensor = self.narrow(F.gelu(self.widen(x)))
        return narrowed


class Attention(nn.Module):
    """Multi-head self-attention to both sides, with dropout on the attention weights."""

    def __init__(self, *, width: int, heads: int, dropout: float, rotary: bool) -> None:
        super().__init__()
        self.heads = heads
        self.rotary = rotary
        self.dropout = dropout
        self.query_key_value = linear(width, 3 * width)
        self.project = linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map [batch, time, width] to the same shape; `mask` [batch, time] is false for padding."""
        batch, time, width = x.shape
        joined = self.query_key_value(x).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = joined.permute(2, 0, 3, 1, 4)  # each [batch, heads, time, head width]
        if self.rotary:
            query, key = rotate(query), rotate(key)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        projected: Tensor = self.project(attended.transpose(1, 2).reshape(batch, time, width))
        return projected


class Head(nn.Module):
    """BERT's head for masked tokens: a dense layer, and the projection to the vocabulary."""

    def __init__(self, *, vocabulary: int, width: int, pre: bool) -> None:
        super().__init__()
        self.last_norm = nn.LayerNorm(width, eps=_EPSILON) if pre else None  # of the residual stream
        self.dense = linear(width, width)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.linear = linear(width, vocabulary)

    def forward(self, hidden: Hidden) -> Tensor:
        """Map hidden states to logits [batch, time, vocabulary]."""
        x = hidden[0] if isinstance(hidden, tuple) else hidden
        if self.last_norm is not None:
            x = self.last_norm(x)
        logits: Tensor = self.linear(self.norm(F.gelu(self.dense(x))))
        return logits


def _embedding(number: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(number, width)
    nn.init.normal_(embedding.weight, std=STD)
    return embedding
