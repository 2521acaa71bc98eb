"""Code that contestants on torch.distributed share."""

from datetime import timedelta
from typing import Any

import torch.distributed as dist

PATIENCE = timedelta(days=1)  # between two orders, while other contestants take turns


def gather(value: Any) -> list[Any]:
    """Return every rank's value, by rank; all ranks must call it together."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
