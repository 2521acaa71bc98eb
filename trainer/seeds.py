"""Seeds derived from the purpose of a random number, so they do not depend on layout or execution order."""

from hashlib import blake2b

import torch


def derive(*purpose: int | str) -> int:
    """Return a 63-bit seed for a purpose, such as (seed, step, micro-batch, layer)."""
    text = "/".join(map(str, purpose)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the default generator of a device.

    `torch.manual_seed` seeds every device, which is a hundred times slower.
    """
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
