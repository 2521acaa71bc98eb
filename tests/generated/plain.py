"""Whether the plain loop of `trainer.verify` trains a case, in this process alone."""

import torch

from trainer.config.schema import Config
from trainer.data.build import load_data
from trainer.data.order import Order
from trainer.models.build import build_model
from trainer.models.freeze import freeze
from trainer.verify.reference import Reference


def trains(config: Config, replicas: int) -> bool:
    """Return whether the plain loop runs to its end."""
    try:
        data = load_data(config.data)
        model = freeze(build_model(config.model, data), config.train.freeze)
        steps, size = config.train.steps or 1, config.batch.global_size
        reference = Reference(config, model, data, replicas=replicas, steps=steps, device=torch.device("cpu"))
        order = Order(len(data.training), config.train.seed)
        with torch.enable_grad():
            for step in range(1, config.verify.steps + 1):
                reference.step(step, order.samples((step - 1) * size, size))
                reference.take_gradients(reference.values("gradient"))
                reference.update(step)
        reference.validate(len(data.validation))
    except Exception:
        return False
    return True
