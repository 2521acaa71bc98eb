"""Seeds derived from the purpose of a random number, so they do not depend on layout or execution order."""

import random
from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import torch

_CPU = torch.device("cpu")


def derive(*purpose: int | str) -> int:
    """Return a 63-bit seed for a purpose, such as (seed, step, micro-batch, layer)."""
    text = "/".join(map(str, purpose)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def seed_generators(seed: int, device: torch.device = _CPU) -> None:
    """Seed every global generator that custom code may draw from: torch's, NumPy's and Python's.

    Args:
        seed: A seed from `derive`; NumPy takes its lower 32 bits.
        device: The device whose default generator is seeded besides that of the CPU. `torch.manual_seed`
            seeds every device, which is a hundred times slower.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        default_generator(device).manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def default_generator(device: torch.device) -> torch.Generator:
    """Return the generator that a device draws from, unless it is given another."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator


def generator_states(device: torch.device = _CPU) -> Callable[[], None]:
    """Note the states of the generators that `seed_generators` seeds; return what restores them."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    generator = default_generator(device) if device.type == "cuda" else None
    device_state = None if generator is None else generator.get_state()

    def restore() -> None:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if generator is not None and device_state is not None:
            generator.set_state(device_state)

    return restore
