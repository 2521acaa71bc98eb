"""A folder of Hugging Face's: its configuration, the class of its model, and what cannot be trained."""

import logging
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, GenerationConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.config.schema import HFConfig
from trainer.errors import UserError, suggest

_CONFIG = "config.json"
_HEADS = ("LMHeadModel", "ForCausalLM", "ForMaskedLM")  # how the names of classes for tokens end


def read_config(config: HFConfig) -> Any:
    """Return the configuration in a model's folder, with what `model.config` changes.

    Raises:
        UserError: There is none, or its model cannot be trained here; says why.
    """
    folder = Path(config.path)
    if not (folder / _CONFIG).is_file():
        raise UserError(f"model.path={config.path} has no {_CONFIG}: it must be the folder of a model")
    _silence()
    try:
        found: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"model.path={config.path}: transformers cannot read {_CONFIG}: {reason}") from error
    for key, value in config.config.items():
        if not hasattr(found, key):
            near = suggest(key, vars(found))
            raise UserError(f"model.config.{key}: {type(found).__name__} has no such value{near}")
        setattr(found, key, value)
    for refused, why in (
        (found.is_encoder_decoder, "is an encoder with a decoder; causal and masked models train"),
        (getattr(found, "auto_map", None), "needs code of its own (trust_remote_code), which is not run"),
        (getattr(found, "quantization_config", None), "has quantised weights; use those in full precision"),
    ):
        if refused:
            raise UserError(f"model.path={config.path}: {found.model_type} {why}")
    found.use_cache = False
    return found


def model_class(config: Any, path: str) -> Any:
    """Return the class of a configuration's model: with the head that the folder names, or one for tokens.

    Raises:
        UserError: It has neither.
    """
    import transformers  # noqa: PLC0415  (its classes are attributes)

    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if found is not None and name.endswith(_HEADS):
            return found
    for auto in (AutoModelForCausalLM, AutoModelForMaskedLM):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise UserError(f"model.path={path}: {config.model_type} has no causal and no masked language model")


def end_tokens(path: str, config: Any) -> tuple[int, ...]:
    """Return the tokens that end a text, by the folder's configuration of generation, or the model's."""
    try:
        found = GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id
    except OSError:  # it has none
        found = config.eos_token_id
    return () if found is None else (found,) if isinstance(found, int) else tuple(found)


def find_list(model: nn.Module) -> str:
    """Return the path of a model's list of blocks.

    Raises:
        UserError: There is not one list alone.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0
    }
    kind = GradientCheckpointingLayer  # transformers' own mark of a block
    marked = [name for name, module in lists.items() if isinstance(module[0], kind)]
    candidates: list[str] = marked or [name for name, module in lists.items() if len(module) > 1]
    outermost = [name for name in candidates if not any(name.startswith(f"{other}.") for other in candidates)]
    if not outermost:
        raise UserError(
            "model.blocks=auto found no list of blocks: name them; a block that the forward calls for "
            f"several layers, as ALBERT's, cannot be cut at. The model's lists are "
            f"{', '.join(lists) or 'none'}"
        )
    if len(outermost) > 1:
        raise UserError(
            f"model.blocks=auto found {len(outermost)} lists of blocks, {', '.join(outermost)}: name those "
            "to cut between, in the order of their calls"
        )
    return outermost[0]


def _silence() -> None:
    """Keep transformers' advice out of a run's output; errors are raised."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="transformers")
