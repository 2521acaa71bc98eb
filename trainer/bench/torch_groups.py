"""What contestants on torch.distributed share."""

from datetime import timedelta
from typing import Any

import torch.distributed as dist

PATIENCE = timedelta(days=1)  # between two orders, while other contestants have their turns


def gather(value: Any) -> list[Any]:
    """Return every rank's value."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
