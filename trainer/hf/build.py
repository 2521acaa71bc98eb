"""A Hugging Face model as a list of layers."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.activation import Activation
from trainer.config.model_folder import limit
from trainer.config.schema import HFConfig
from trainer.cut.blocks import find_blocks
from trainer.cut.model import cut
from trainer.cut.weights import RecordedWeights
from trainer.data.dataset import Data, as_tensors
from trainer.errors import UserError
from trainer.models.gpt import TokenLoss
from trainer.models.model import Model

_MASK = "attention_mask"


def hf(config: HFConfig, data: Data) -> Model:
    """Return the model in a folder as layers: what comes before the first block, and one layer a block.

    The data's inputs are tokens [batch, time], or a dict of the forward's arguments. Its targets are aligned
    with the logits: shifted for causal models.

    Raises:
        UserError: `transformers` is not installed, the folder holds no model that can be trained, or it does
            not fit the data.
    """
    check_installed()
    from trainer.hf import attention, folder  # noqa: PLC0415  (they import transformers)
    from trainer.hf.weights import SavedWeights  # noqa: PLC0415

    attention.register()
    settings = folder.read_config(config)
    kind = folder.model_class(settings, config.path)
    example = as_tensors(data.training.inputs(np.zeros(1, dtype=np.int64)))
    _check_fit(config, settings, data)
    _check_length(settings, data, example)
    padded = isinstance(example, dict) and _MASK in example

    def made_with(implementation: str) -> nn.Module:
        made: nn.Module = kind._from_config(
            settings,
            dtype=torch.float32,
            attn_implementation=implementation,
            experts_implementation=config.experts,
        )
        return made

    def make() -> nn.Module:
        if config.attention == "eager" or not kind._supports_sdpa:
            return made_with("eager")
        try:
            return made_with(attention.implementation(padded=padded))
        except KeyError:  # a family with a table of its own, such as Falcon's
            return made_with("eager")

    path = Path(config.path)
    weights = SavedWeights(make, path) if config.load == "weights" else RecordedWeights(make)
    names = config.blocks or [folder.find_list(weights.skeleton)]
    blocks = find_blocks(weights.skeleton, names, "model.blocks")
    return cut(weights, blocks, example, TokenLoss(), _call if padded else _unpadded)


def _check_fit(config: HFConfig, settings: Any, data: Data) -> None:
    """Raise a UserError unless the data's tokens are those of the model."""
    path, tokens, known = config.path, data.vocabulary, settings.vocab_size
    if tokens is not None and tokens > known:
        raise UserError(
            f"the data has {tokens} distinct tokens, and model.path={path} knows {known}: use the model's "
            "own tokenizer"
        )
    if tokens is not None and config.load == "weights" and 2 * tokens < known:
        raise UserError(
            f"the data has {tokens} distinct tokens, and the weights in model.path={path} know {known}, of "
            "another tokenizer: give data.tokenizer=... the model's own, or train new weights with "
            "model.load=config"
        )


def _check_length(settings: Any, data: Data, example: Activation) -> None:
    """Raise a UserError if samples are longer than the model's positions; a GPU would fail without a word."""
    tokens = example.get("input_ids") if isinstance(example, dict) else example
    longest = data.longest or (tokens.shape[-1] if isinstance(tokens, Tensor) else 0)
    most = limit(settings.to_dict())
    if most is not None and most < longest:
        raise UserError(
            f"the data's samples have up to {longest} tokens (data.context), and the model has {most} "
            "positions: lower data.context, or raise +model.config.max_position_embeddings where positions "
            "are computed, as rotary ones are"
        )


def check_installed() -> None:
    """Raise a UserError unless transformers is installed."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            "model=hf needs transformers: pip install 'transformers>=5.24' (Python 3.11 or newer)"
        )


def _call(model: nn.Module, inputs: Activation) -> Any:
    return model(**inputs).logits


def _unpadded(model: nn.Module, inputs: Activation) -> Any:
    """Call a model with a mask of ones: without one it would look for packed sequences, by their numbers."""
    arguments: dict[str, Tensor] = inputs if isinstance(inputs, dict) else {"input_ids": inputs}
    return model(**arguments, attention_mask=torch.ones_like(arguments["input_ids"])).logits
