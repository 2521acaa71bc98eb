"""Saves a checkpoint, together on all ranks of a model-parallel group."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import torch
from torch import Tensor

from trainer.checkpoint.folders import PARTIAL, checkpoint_folder, remove
from trainer.checkpoint.optimizer_state import Shared, agreed, layer_state, shared_values
from trainer.checkpoint.packing import Packed, chunks, gather_shards, persistent_buffers, to_bytes
from trainer.checkpoint.schema import FORMATS, Progress
from trainer.checkpoint.shared_state import write_shared
from trainer.checkpoint.values import NotStorableError
from trainer.distributed.world import Communicator
from trainer.errors import UserError
from trainer.optim.modes import evaluating
from trainer.pipeline.layer import BuiltLayer

_Type = TypeVar("_Type")
_LONGEST_NAME = 200  # bytes, of the 255 that file systems take
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


def save_checkpoint(
    folder: Path,
    layers: Sequence[BuiltLayer],
    optimizer: torch.optim.Optimizer | None,
    progress: Progress,
    group: Communicator,
    *,
    replicas: Communicator | None = None,
) -> Path:
    """Write a checkpoint together: each rank of one model-parallel group writes its own layers.

    Args:
        folder: The folder of checkpoints; all ranks must share it.
        layers: This rank's layers.
        optimizer: This rank's optimizer.
        progress: The run's progress.
        group: The model-parallel group; all its ranks call this.
        replicas: The data-parallel group, if the optimizer is sharded: all its ranks call this, and all
            others send their shards to the first, layer by layer.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: The disk is full, or the folder cannot be written; the optimizer's
            state cannot be saved. Older checkpoints stay as they are.
    """
    shared = [_storable(lambda: shared_values(optimizer))]
    if replicas is not None:
        shared = replicas.all_gather_objects(shared[0])
        if replicas.rank > 0:
            for layer in layers:
                replicas.send_bytes(to_bytes(_state(layer, optimizer)), 0)
            return checkpoint_folder(folder, progress.step)
    final = checkpoint_folder(folder, progress.step)
    writer = _Writer(final.with_name(final.name + PARTIAL))
    described = _write_layers(writer, layers, optimizer, progress.step, replicas)
    everyone = group.all_gather_objects((writer.files, described, shared))
    _raise_problem(writer, group)
    everywhere = agreed([each for *_, theirs in everyone for each in theirs])
    if group.rank == 0:
        for files, theirs, _ in everyone:
            writer.files |= files
            described |= theirs
        _write_rest(writer, described, everywhere, progress)
        writer.attempt("renaming it", lambda: _publish(writer.folder, final))
    _raise_problem(writer, group)
    return final


def _write_layers(
    writer: "_Writer",
    layers: Sequence[BuiltLayer],
    optimizer: torch.optim.Optimizer | None,
    step: int,
    replicas: Communicator | None,
) -> dict[int, dict[str, Any]]:
    """Write the files of this rank's layers; return their entries for the manifest, by the layer's index."""
    described = {}
    with evaluating(optimizer) as training:
        for layer in layers:
            state = _state(layer, optimizer)
            if replicas is not None:
                state = gather_shards(state, replicas)
            name = f"layers/{file_name(layer.name)}.safetensors"
            packed = _pack(layer, state, training, step)
            if writer.problem is None:
                size = sum(tensor.nbytes for tensor in packed.tensors.values())
                writer.write(name, chunks(packed), size)
            shapes = {owned: list(parameter.shape) for owned, parameter in layer.owned()}
            described[layer.index] = {"name": layer.name, "file": name, "parameters": shapes}
    return described


def _write_rest(
    writer: "_Writer", described: dict[int, dict[str, Any]], shared: Shared, progress: Progress
) -> None:
    """Write what is no layer's; the manifest last."""
    if shared:
        writer.write("optimizer.json", [write_shared(shared)])
    writer.write("progress.json", [_json(asdict(progress))])
    layers = [described[index] for index in sorted(described)]
    writer.write("manifest.json", [_json({"format": FORMATS[-1], "layers": layers, "files": writer.files})])


def file_name(layer: str) -> str:
    """Return the name of a layer's file, without its suffix: no longer than file systems take."""
    name = quote(layer, safe="")
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(layer.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name[: _LONGEST_NAME - 33]}-{digest[:32]}"


class _Writer:
    """Writes files of a checkpoint; after the first failure, none.

    Attributes:
        folder: Where they are.
        files: The entries of the files for the manifest, by name.
        problem: What failed; None so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}
        self.problem: str | None = None
        self.attempt("making the folder", lambda: (folder / "layers").mkdir(parents=True, exist_ok=True))

    def write(self, name: str, parts: Iterable[Any], size: int | None = None) -> None:
        """Write a file, part by part, and sync it to disk; its size in bytes is for messages."""
        about = "" if size is None else f" ({size} bytes)"
        self.attempt(f"writing {name}{about}", lambda: self._write(name, parts))

    def attempt(self, what: str, action: Callable[[], object]) -> None:
        """Do something with files, unless something failed before."""
        if self.problem is not None:
            return
        try:
            action()
        except OSError as error:
            words = f"{error.strerror or error}{_free(self.folder) if error.errno in _OUT_OF_SPACE else ''}"
            self.problem = (
                f"the checkpoint {self.folder.with_suffix('')} cannot be saved: {what}: {words}; older ones "
                "stay as they are, and the run can resume from the newest once this is mended"
            )

    def _write(self, name: str, parts: Iterable[Any]) -> None:
        digest, size = hashlib.sha256(), 0
        with (self.folder / name).open("wb") as file:
            for part in parts:
                file.write(part)
                digest.update(part)
                size += len(part)
            file.flush()
            os.fsync(file.fileno())
        self.files[name] = {"bytes": size, "sha256": digest.hexdigest()}


def _raise_problem(writer: _Writer, group: Communicator) -> None:
    """Raise what failed, on every rank alike, and remove what was written."""
    problems = [problem for problem in group.all_gather_objects(writer.problem) if problem is not None]
    if problems:
        if group.rank == 0:
            shutil.rmtree(writer.folder, ignore_errors=True)
        raise UserError(problems[0])


def _storable(pack: Callable[[], _Type]) -> _Type:
    try:
        return pack()
    except NotStorableError as error:
        raise UserError(f"the optimizer's state cannot be saved in a checkpoint: {error}") from error


def _state(layer: BuiltLayer, optimizer: torch.optim.Optimizer | None) -> Packed:
    return _storable(lambda: layer_state(layer, optimizer))


def _pack(layer: BuiltLayer, state: Packed, training: dict[torch.nn.Parameter, Tensor], step: int) -> Packed:
    """Return the content of a layer's file."""
    tensors: dict[str, Tensor] = dict(state.tensors)
    for name, parameter in layer.owned():
        tensors[f"weight.{name}"] = parameter
        if parameter in training:
            tensors[f"training.{name}"] = training[parameter]
    buffers = {f"buffer.{name}": buffer for name, buffer in persistent_buffers(layer.module)}
    changes = bool(layer.trained() or buffers)  # the file of a layer that does not is the same at every step
    return Packed(tensors | buffers, state.state, layer.name, step if changes else None)


def _publish(partial: Path, final: Path) -> None:
    """Give a complete checkpoint its name; one of this step that was there before makes way."""
    remove(final)
    partial.rename(final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _free(folder: Path) -> str:
    """Return how much space is free, in words."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return f" ({shutil.disk_usage(there).free} bytes are free)"
    except OSError:
        return ""
