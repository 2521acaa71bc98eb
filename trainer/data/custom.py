"""Custom data, by import path."""

from trainer.config.import_path import call
from trainer.config.import_path import load as load_target
from trainer.config.schema import CustomDataConfig
from trainer.data.dataset import Data
from trainer.data.stream import from_stream, is_stream
from trainer.data.torch_dataset import Items, from_torch, is_map_style
from trainer.errors import UserError


def prepare(config: CustomDataConfig) -> None:
    """Call the configured `prepare`, if any, with the options of the target.

    Raises:
        UserError: It cannot be imported, or does not accept the options.
    """
    if config.prepare is not None:
        function = load_target(config.prepare, "data.prepare")
        call(function, config.prepare, "data.prepare", **config.options)


def load(config: CustomDataConfig) -> Data:
    """Return the data that the configured target makes, from a dataset of torch's if it is one.

    Raises:
        UserError: The target cannot be imported or called, or does not return data.
    """
    made = call(load_target(config.target, "data.target"), config.target, "data.target", **config.options)
    if isinstance(made, Data):
        return made
    pair = made if isinstance(made, (tuple, list)) else [made]
    streams = any(map(is_stream, pair))
    if not 1 <= len(pair) <= 2 or not all(is_map_style(each) or is_stream(each) for each in pair):  # noqa: PLR2004
        raise UserError(
            f"data.target={config.target} returned {type(made).__name__}: it must return a "
            "torch.utils.data.Dataset with numbered items, an IterableDataset, a pair of these, or a "
            "trainer.data.dataset.Data"
        )
    collate = None if config.collate is None else load_target(config.collate, "data.collate")
    items = Items(collate, config.targets)
    return from_stream(pair, items) if streams else from_torch(made, items, config.validation)
