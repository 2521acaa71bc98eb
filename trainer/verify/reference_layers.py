"""The layers of the reference: seeds and initial weights, implemented a second time."""

import random
from hashlib import blake2b

import numpy as np
import torch
from torch import nn

from trainer.models.model import Model


def build_modules(model: Model, seed: int, device: torch.device) -> dict[str, nn.Module]:
    """Return every layer's module by name; copies of a tied parameter have the owner's weights."""
    modules: dict[str, nn.Module] = {}
    for layer in model.layers:
        seed_generators(seed_of(seed, "weights", layer.name))
        modules[layer.name] = layer.build()
        for tie in layer.ties:
            owner = modules[tie.owner].get_parameter(tie.owner_parameter)
            with torch.no_grad():
                use = modules[layer.name].get_parameter(tie.parameter)
                use.copy_(owner).requires_grad_(owner.requires_grad)
    return {name: module.to(device) for name, module in modules.items()}


def seed_generators(seed: int) -> None:
    """Seed torch's, NumPy's and Python's global generators."""
    # `torch.manual_seed` takes milliseconds, and keeps a traceback of every call until CUDA starts.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_of(*purpose: int | str) -> int:
    """Return the first 63 bits of the BLAKE2b digest of "seed/purpose/..."."""
    digest = blake2b("/".join(str(part) for part in purpose).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") // 2
