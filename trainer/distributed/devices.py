"""The devices that a rank drives."""

import torch

from trainer.errors import UserError


def devices_of_rank(device: str, local_rank: int, count: int) -> list[torch.device]:
    """Return the devices of a rank.

    Args:
        device: "auto" (GPUs if torch sees any, else the CPU), "cpu" or "cuda".
        local_rank: The rank's number on its node.
        count: The number of devices that it drives. If the node has fewer GPUs, ranks share them.

    Raises:
        UserError: The device is "cuda", but torch sees no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU here: use device=cpu or device=auto")
    if device == "cpu" or not torch.cuda.is_available():
        return [torch.device("cpu")] * count
    gpus = torch.cuda.device_count()
    devices = [torch.device("cuda", (local_rank * count + i) % gpus) for i in range(count)]
    torch.cuda.set_device(devices[0])
    return devices


def peak_memory(devices: list[torch.device]) -> int:
    """Return the peak memory of this rank in bytes: of its GPUs, or of the process if it has none."""
    if devices[0].type == "cuda":
        return sum(torch.cuda.max_memory_allocated(device) for device in set(devices))
    import resource  # noqa: PLC0415  (not on every platform)

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
