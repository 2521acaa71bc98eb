"""Checkpoints: one safetensors file per layer, and a manifest that is written last.

    checkpoints/step-00000100/
        layers/embedding.safetensors    the layer's weights, buffers and optimizer state
        layers/...
        progress.json                   steps and samples so far, seed, versions
        manifest.json                   the model's layers, and the size and SHA-256 of every file

A checkpoint does not depend on the layout, and loading it unpickles nothing. It is written under another name
and renamed when complete; a folder without a manifest is not a checkpoint.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn

from trainer.checkpoint.packing import (
    Packed,
    gather_shards,
    optimizer_state,
    pack_layer,
    persistent_buffers,
    to_bytes,
    unpack,
)
from trainer.distributed.world import Communicator
from trainer.errors import UserError
from trainer.models.model import Layer
from trainer.models.names import Name, own_name
from trainer.pipeline.layer import BuiltLayer

FORMAT = 1
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        step: Optimizer steps done.
        samples: Samples trained on since the start of the run: the position in the data.
        seed: The run's seed.
        optimizer: The optimizer's name; its state fits no other optimizer.
        versions: The versions of the software that made it.
        data: The data's fingerprint; None in checkpoints from before it was saved.
        loss_scale: The attributes of the run's `LossScale`; None without one, and in older checkpoints.
        replication: The state of the replication strategy.
    """

    step: int
    samples: int
    seed: int
    optimizer: str
    versions: dict[str, str]
    data: str | None = None
    loss_scale: dict[str, Any] | None = None
    replication: dict[str, Any] = field(default_factory=dict)


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
        OSError: The disk is full, or the folder cannot be written.
    """
    final = checkpoint_folder(folder, progress.step)
    if replicas is not None and replicas.rank > 0:
        for layer in layers:
            replicas.send_bytes(to_bytes(optimizer_state(layer, optimizer)), 0)
        return final
    partial = final.with_name(final.name + _PARTIAL)
    (partial / "layers").mkdir(parents=True, exist_ok=True)
    files, described = {}, {}
    for layer in layers:
        name = f"layers/{quote(layer.name, safe='')}.safetensors"
        state = optimizer_state(layer, optimizer)
        if replicas is not None:
            state = gather_shards(state, replicas)
        files[name] = _write(partial / name, pack_layer(layer, state))
        described[layer.index] = _describe(layer, name)
    gathered = group.all_gather_objects((files, described))
    if group.rank == 0:
        files = {name: entry for theirs, _ in gathered for name, entry in theirs.items()}
        ordered = sorted(item for _, theirs in gathered for item in theirs.items())
        files["progress.json"] = _write(partial / "progress.json", _json(asdict(progress)))
        manifest = {"format": FORMAT, "layers": [entry for _, entry in ordered], "files": files}
        _write(partial / "manifest.json", _json(manifest))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(folder)
    group.barrier()
    return final


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint in a folder of checkpoints."""
    return folder / f"step-{step:08d}"


def remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; 0 keeps all."""
    if keep > 0:
        for old in _complete(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """Return the checkpoint to start a run from, or None.

    Args:
        resume: "auto" (the newest in the folder), "none", or the path of a checkpoint or a folder of them.
        folder: The run's folder of checkpoints.

    Raises:
        UserError: A path is given, but there is no complete checkpoint.
    """
    if resume == "none":
        return None
    return _newest(folder) if resume == "auto" else checkpoint_at(resume, "checkpoint.resume")


def checkpoint_at(path: str, key: str) -> Path:
    """Return the checkpoint at a path, or the newest in a folder of checkpoints or of a run.

    Args:
        path: The path.
        key: The dotted key that it comes from, for messages.

    Raises:
        UserError: There is no complete checkpoint.
    """
    found = _newest(Path(path))
    if found is None:
        raise UserError(
            f"{key}={path} is not a checkpoint: it has no manifest.json; "
            "give the folder of a checkpoint (.../checkpoints/step-00000100) or of a run"
        )
    return found


class Checkpoint:
    """A saved checkpoint, for reading.

    Raises:
        UserError: The manifest cannot be read, or has another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: dict[str, Packed] = {}
        try:
            self._manifest = json.loads((path / "manifest.json").read_text())
            self._layers = {entry["name"]: entry for entry in self._manifest["layers"]}
            self._files: dict[str, Any] = self._manifest["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"the checkpoint {path} cannot be read: manifest.json: {error}") from error
        if self._manifest["format"] != FORMAT:
            raise UserError(
                f"the checkpoint {path} has format {self._manifest['format']}; this trainer reads {FORMAT}"
            )

    def progress(self) -> Progress:
        """Return the progress of its run."""
        return Progress(**json.loads(self._read("progress.json")))

    @property
    def layers(self) -> list[str]:
        """Return the names of its model's layers, in order."""
        return list(self._layers)

    def shapes(self, layer: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters that one of its layers owns, by name."""
        return {name: tuple(shape) for name, shape in self._layers[layer]["parameters"].items()}

    def check_model(self, layers: Sequence[Layer]) -> None:
        """Raise a UserError unless its model has these layers."""
        theirs, ours = self.layers, [layer.name for layer in layers]
        if theirs != ours:
            raise UserError(
                f"the checkpoint {self.path} is of another model: it has {len(theirs)} layers "
                f"({_some(theirs)}), this model has {len(ours)} ({_some(ours)})"
            )

    def restore(
        self, layers: Sequence[BuiltLayer], optimizer: torch.optim.Optimizer | None, optimizer_name: str
    ) -> None:
        """Load weights, buffers and optimizer state into a rank's layers, whatever layout saved them.

        The optimizer gets the state of those parameters that it updates.

        Raises:
            UserError: A parameter has another shape, the optimizer is different, or a file is damaged.
        """
        saved_with = self.progress().optimizer
        if saved_with != optimizer_name:
            raise UserError(
                f"the checkpoint {self.path} was made with optimizer={saved_with}, "
                f"but this run has optimizer={optimizer_name}"
            )
        self.restore_weights(layers, self.layers)
        if optimizer is None:
            return
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for layer in layers:
            for name, parameter in layer.module.named_parameters():
                if parameter in held:
                    self._restore_state(own_name(layer.name, name, layer.ties), parameter, optimizer)

    def restore_weights(self, layers: Sequence[BuiltLayer], chosen: Collection[str]) -> None:
        """Load only weights and buffers, of the layers whose names are chosen.

        A tied parameter gets its owner's weight if the owner is chosen.

        Raises:
            UserError: A parameter or a buffer has another shape, or a file is damaged.
        """
        for layer in layers:
            for name, parameter in layer.module.named_parameters():
                owner, owner_name = own_name(layer.name, name, layer.ties)
                if owner in chosen:
                    self._copy(owner, "weight", owner_name, parameter)
            if layer.name in chosen:
                for name, buffer in persistent_buffers(layer.module):
                    self._copy(layer.name, "buffer", name, buffer)

    @torch.no_grad()
    def _copy(self, layer: str, kind: str, name: str, target: Tensor) -> None:
        saved = self._open(layer).tensors.get(f"{kind}.{name}")
        if saved is None or saved.shape != target.shape:
            theirs = f"no such {kind}" if saved is None else f"shape {tuple(saved.shape)}"
            raise UserError(
                f"the checkpoint {self.path} is of another model: {layer}/{name}: {theirs} in the "
                f"checkpoint, shape {tuple(target.shape)} in this model"
            )
        target.copy_(saved)

    def _restore_state(self, name: Name, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        packed = self._open(name[0])
        prefix = f"optimizer.{name[1]}."
        state: dict[str, Any] = {
            key.removeprefix(prefix): tensor.to(parameter.device, copy=True)  # one copy per tied parameter
            for key, tensor in packed.tensors.items()
            if key.startswith(prefix)
        }
        state |= packed.scalars.get(name[1], {})
        if state:
            optimizer.state[parameter] = state

    def _open(self, layer: str) -> Packed:
        if layer not in self._opened:
            self._opened[layer] = unpack(self._read(self._layers[layer]["file"]))
        return self._opened[layer]

    def _read(self, name: str) -> bytes:
        """Return a file's content, checked against the manifest."""
        try:
            data = (self.path / name).read_bytes()
            expected = self._files[name]
        except (OSError, KeyError) as error:
            raise UserError(f"the checkpoint {self.path} is incomplete: {name}: {error}") from error
        if _entry(data) != expected:
            raise UserError(
                f"the checkpoint {self.path} is damaged: {name} does not match its manifest "
                f"({len(data)} bytes, expected {expected['bytes']}; SHA-256 differs): use an older one"
            )
        return data


def _describe(layer: BuiltLayer, file: str) -> dict[str, Any]:
    shapes = {name: list(parameter.shape) for name, parameter in layer.owned()}
    return {"name": layer.name, "file": file, "parameters": shapes}


def _write(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file and sync it to disk; return its entry for the manifest."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return _entry(data)


def _entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _newest(path: Path) -> Path | None:
    """Return the checkpoint as `checkpoint_at` does, or None."""
    if (path / "manifest.json").is_file():
        return path
    found = _complete(path) or _complete(path / "checkpoints")
    return found[-1] if found else None


def _complete(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, oldest first."""
    return sorted(
        path.parent for path in folder.glob("step-*/manifest.json") if path.parent.suffix != _PARTIAL
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")  # noqa: PLR2004
