"""Attention whose structure follows from shapes alone.

Transformers leaves a mask out where all of its numbers allow it. Then the structure of a forward would depend
on the data, and an analysis without numbers would be impossible. So data that pads gets a mask always, and
data that does not gets none ever.
"""

from collections.abc import Callable
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask


def register() -> None:
    """Register the implementations that `implementation` names."""
    for name, mask in (("padded", _always(sdpa_mask)), ("unpadded", _never(sdpa_mask))):
        AttentionInterface.register(f"sdpa_{name}", sdpa_attention_forward)
        AttentionMaskInterface.register(f"sdpa_{name}", mask)
    AttentionMaskInterface.register("eager", _always(eager_mask))  # models look this one up by its name


def implementation(*, padded: bool) -> str:
    """Return the name of an implementation for a model's configuration.

    Args:
        padded: Whether the data has attention masks.
    """
    return f"sdpa_{'padded' if padded else 'unpadded'}"


def _always(mask: Callable[..., Any]) -> Callable[..., Any]:
    def always(*args: Any, **kwargs: Any) -> Any:
        return mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})

    return always


def _never(mask: Callable[..., Any]) -> Callable[..., Any]:
    def never(*args: Any, **kwargs: Any) -> Any:
        return mask(*args, **{**kwargs, "attention_mask": None})

    return never
