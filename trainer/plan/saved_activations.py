"""What a forward keeps for its backward, counted on torch's meta device: no memory is taken for it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trainer.activation import Activation, TreeSpec, flatten, unflatten
from trainer.models.model import Loss
from trainer.pipeline.precision import Precision
from trainer.pipeline.recomputation import Recompute, Repeatable
from trainer.pipeline.tensor_bytes import LiveBytes

aten = torch.ops.aten


def saved_bytes(
    forward: Callable[..., list[Tensor]], inputs: Sequence[Tensor], recompute: Recompute = Recompute.NONE
) -> int:
    """Return what a forward keeps, besides parameters and inputs.

    Args:
        forward: From inputs to outputs.
        inputs: On the meta device.
        recompute: What its backward computes again.
    """
    live = LiveBytes()
    with torch.enable_grad(), torch.device("meta"), _FusedAttention(), live:
        if recompute is Recompute.NONE:
            outputs = forward(*inputs)
        else:
            outputs = Repeatable(recompute, forward, *inputs).run()
        kept = live.bytes
    del outputs
    return kept


def saved_by_loss(
    loss: Loss, precision: Precision, outputs: Sequence[Tensor], nest: TreeSpec, targets: Activation
) -> int:
    """Return what a loss keeps, besides what the last layer returns and the targets.

    Args:
        loss: The loss.
        precision: What the loss takes of what the layers compute in.
        outputs: What the last layer returns, on the meta device.
        nest: How these nest.
        targets: Of a micro-batch; only types and shapes are looked at.
    """

    def forward(*leaves: Tensor) -> list[Tensor]:
        taken = [precision.for_loss(tensor) for tensor in leaves]
        return [*taken, loss(unflatten(taken, nest), on_meta)]

    tensors, shape = flatten(targets)
    on_meta = unflatten([torch.empty_like(tensor, device="meta") for tensor in tensors], shape)
    return saved_bytes(forward, outputs)


class _FusedAttention(TorchFunctionMode):
    """Runs attention fused where a processor does; the meta device by itself never does."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function, or what stands for it."""
        if func is F.scaled_dot_product_attention:
            func = _attention
        return func(*args, **(kwargs or {}))


def _attention(  # noqa: PLR0917  (torch's)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return what `F.scaled_dot_product_attention` does, with its names; [batch, heads, tokens, width]."""
    four = query.dim() == key.dim() == value.dim() == 4  # noqa: PLR2004
    same = query.shape[-1] == key.shape[-1] == value.shape[-1]
    learns = attn_mask is not None and attn_mask.requires_grad
    if dropout_p > 0 or enable_gqa or learns or not (four and same):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)  # numbers, which are kept
    output: Tensor = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return output
