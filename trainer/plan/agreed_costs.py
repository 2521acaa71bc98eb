"""The costs of layers, counted on one rank for all."""

from trainer.config.schema import Config
from trainer.data.dataset import Data
from trainer.distributed.world import Communicator
from trainer.errors import UserError
from trainer.models.model import Model
from trainer.plan.costs import LayerCost
from trainer.plan.plan import model_costs


def agreed_costs(world: Communicator, config: Config, model: Model, data: Data) -> tuple[LayerCost, ...]:
    """Return what rank 0 counts: all ranks must make the same plan, also where a cost is a guess.

    The other ranks leave it the processor, and do not run custom code once more.

    Args:
        world: All ranks; each must call this.
        config: The configuration.
        model: The model.
        data: Samples, of which only types and shapes matter.

    Raises:
        UserError: On every rank, what rank 0 found wrong.
    """
    counted: tuple[LayerCost, ...] | UserError | None = None
    if world.rank == 0:
        try:
            counted = model_costs(config, model, data)
        except UserError as error:
            counted = error
    agreed: tuple[LayerCost, ...] | UserError = world.all_gather_objects(counted)[0]
    if isinstance(agreed, UserError):
        raise agreed
    return agreed
