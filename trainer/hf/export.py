"""Writes a checkpoint as a folder that transformers opens: one safetensors file a layer, and an index."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from trainer.checkpoint.checkpoint import Checkpoint
from trainer.config.schema import HFConfig
from trainer.cut.parts import tensors
from trainer.errors import UserError
from trainer.hf.folder import model_class, read_config

_INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".onnx", ".gguf")
_NOT_COPIED = ("config.json", _INDEX, "pytorch_model.bin.index.json")


def export(checkpoint: Checkpoint, config: HFConfig, folder: Path) -> None:
    """Write a checkpoint's weights, with the configuration, tokenizer and other small files of its model.

    The folder appears when it is complete.

    Args:
        checkpoint: The checkpoint.
        config: The model of its run.
        folder: The folder, which must not exist.

    Raises:
        UserError: It exists or cannot be written, or the checkpoint does not fit the model.
    """
    if folder.exists():
        raise UserError(f"{folder} exists: name a folder that does not")
    settings = read_config(config)
    kind = model_class(settings, config.path)
    with torch.device("meta"):
        model: nn.Module = kind._from_config(settings, dtype=torch.float32)
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_weights(checkpoint, model, partial)
        settings.architectures = [kind.__name__]
        settings.use_cache = True
        settings._attn_implementation = None
        settings.save_pretrained(partial)
        _copy_others(Path(config.path), partial)
        os.rename(partial, folder)  # noqa: PTH104  (fails if the folder exists by now)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error


def _write_weights(checkpoint: Checkpoint, model: nn.Module, folder: Path) -> None:
    """Write a file for every layer, in the form in which transformers stores a model's weights.

    A tensor that has several names in the model is saved under one. Experts are stored one by one.
    """
    names = _saved_names(model)
    where: dict[str, str] = {}
    written: set[str] = set()
    total = 0
    for number, layer in enumerate(checkpoint.layers, 1):
        saved = {names.get(name, name): tensor for name, tensor in checkpoint.weights(layer).items()}
        unknown = [name for name in saved if name not in names.values()]
        if unknown:
            raise UserError(f"the checkpoint {checkpoint.path} is of another model: it has {unknown[0]}")
        if not saved:
            continue
        written |= saved.keys()
        saved = {name: tensor.clone() for name, tensor in revert_weight_conversion(model, saved).items()}
        file = f"model-{number:05d}-of-{len(checkpoint.layers):05d}.safetensors"
        save_file(saved, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(saved, file)
        total += sum(tensor.numel() * tensor.element_size() for tensor in saved.values())
    missing = sorted({*names.values()} - written)
    if missing:
        raise UserError(f"the checkpoint {checkpoint.path} is of another model: it lacks {missing[0]}")
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / _INDEX).write_text(json.dumps(index, indent=2))


def _saved_names(model: Any) -> dict[str, str]:
    """Return the name under which each of a model's saved tensors is saved, by every name that it has.

    Of several names that is the one which transformers ties the others to.
    """
    state = model.state_dict(keep_vars=True)
    uses = set(getattr(model, "all_tied_weights_keys", None) or ())
    canonical: dict[int, str] = {}
    for name, tensor in state.items():
        if id(tensor) not in canonical or canonical[id(tensor)] in uses:
            canonical[id(tensor)] = name
    return {name: canonical[id(tensor)] for name, tensor in tensors(model) if id(tensor) in canonical}


def _copy_others(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files, and whatever else is small and not weights."""
    for file in source.iterdir() if source.is_dir() else ():
        if file.is_file() and not file.name.endswith(_WEIGHTS) and file.name not in _NOT_COPIED:
            shutil.copy(file, folder / file.name)
