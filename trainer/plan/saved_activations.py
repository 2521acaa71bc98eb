"""The bytes that a forward saves for its backward, counted on torch's meta device without allocating them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trainer.activation import Activation, TreeSpec, unflatten
from trainer.models.model import Loss
from trainer.pipeline.precision import Precision
from trainer.pipeline.recomputation import Recompute, Repeatable
from trainer.pipeline.tensor_bytes import LiveBytes

aten = torch.ops.aten


def saved_bytes(
    forward: Callable[..., list[Tensor]], inputs: Sequence[Tensor], recompute: Recompute = Recompute.NONE
) -> int:
    """Return the bytes that a forward saves, without parameters and inputs.

    Args:
        forward: Maps inputs to outputs.
        inputs: The inputs, on the meta device or, of a layer that needs values, on the CPU.
        recompute: The recomputation mode.
    """
    live = LiveBytes()
    device = "meta" if all(tensor.is_meta for tensor in inputs) else "cpu"
    with torch.enable_grad(), torch.device(device), _FusedAttention(), live:
        if recompute is Recompute.NONE:
            outputs = forward(*inputs)
        else:
            layer = Repeatable(recompute, forward, *inputs)  # holds what it saves
            outputs = layer.run_without_backward()
        saved = live.bytes
    del outputs
    return saved


def saved_by_loss(
    loss: Loss,
    precision: Precision,
    outputs: Sequence[Tensor],
    nest: TreeSpec,
    targets: Activation,
    *,
    copied: bool = False,
) -> int:
    """Return the bytes that a loss saves, without the last layer's outputs and the targets.

    Args:
        loss: The loss.
        precision: Converts outputs for the loss.
        outputs: The last layer's outputs, on the meta device.
        nest: The structure of the outputs.
        targets: The targets, on the meta device.
        copied: Whether the loss gets a copy because it writes into its inputs.
    """

    def forward(*leaves: Tensor) -> list[Tensor]:
        converted = [precision.for_loss(tensor) for tensor in leaves]
        given = [tensor.clone() for tensor in converted] if copied else converted
        return [*converted, loss(unflatten(given, nest), targets)]

    return saved_bytes(forward, outputs)


class _FusedAttention(TorchFunctionMode):
    """Fuses attention where a CPU does; the meta device never does so by itself."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function, or its fused replacement."""
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
    """Replace `F.scaled_dot_product_attention`: the same arguments, [batch, heads, tokens, width]."""
    four = query.dim() == key.dim() == value.dim() == 4  # noqa: PLR2004
    same = query.shape[-1] == key.shape[-1] == value.shape[-1]
    trained_mask = attn_mask is not None and attn_mask.requires_grad
    if dropout_p > 0 or enable_gqa or trained_mask or not (four and same):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)  # fused attention saves it as floats
    output: Tensor = aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return output
