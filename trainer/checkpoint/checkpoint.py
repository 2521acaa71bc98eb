"""Checkpoints: one safetensors file per layer, and a manifest that is written last.

    checkpoints/step-00000100/
        layers/embedding.safetensors    the layer's weights, buffers and optimizer state
        layers/...
        optimizer.json                  what the optimizer keeps for all parameters, if anything
        progress.json                   steps and samples so far, seed, versions
        manifest.json                   the model's layers, and the size and SHA-256 of every file

A checkpoint does not depend on the layout, and loading it unpickles nothing. It is written under another name
and renamed when complete; a folder without a manifest is not a checkpoint.

Nothing in it is taken on trust: a right digest shows that a file is what was written, not that it belongs
here. Format 1 has neither `optimizer.json` nor the layer's name and step in a layer's file.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.checkpoint.expected import Expected, first_step
from trainer.checkpoint.folders import find_checkpoint, remove_old
from trainer.checkpoint.packing import Packed, persistent_buffers, unpack
from trainer.checkpoint.save import save_checkpoint
from trainer.checkpoint.schema import DamagedError, Progress, read_manifest, read_progress
from trainer.checkpoint.shared_state import read_shared
from trainer.errors import UserError
from trainer.models.model import Layer
from trainer.models.names import Name, own_name, plain_parameters
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.not_finite import all_finite

__all__ = ["Checkpoint", "Progress", "Restoration", "find_checkpoint", "remove_old", "save_checkpoint"]


@dataclass
class Restoration:
    """What a checkpoint has for a rank, checked; nothing is loaded yet.

    Attributes:
        copies: Parameters and buffers, each with its saved value.
        states: The optimizer's state of parameters.
        shared: Puts back what the optimizer keeps for all parameters.
    """

    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    states: dict[nn.Parameter, dict[Any, Any]] = field(default_factory=dict)
    shared: Callable[[], None] = lambda: None

    @torch.no_grad()
    def apply(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load it."""
        for target, saved in self.copies:
            target.copy_(saved)
        if optimizer is not None:
            for parameter, state in self.states.items():
                optimizer.state[parameter] = state
            self.shared()


class Checkpoint:
    """A saved checkpoint, for reading.

    Raises:
        DamagedError: The manifest cannot be read, or has another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: dict[str, Packed] = {}
        self._progress: Progress | None = None
        try:
            self._manifest = read_manifest((path / "manifest.json").read_bytes())
        except (OSError, ValueError) as error:
            raise DamagedError(
                f"the checkpoint {path} cannot be read: manifest.json: {error}: use an older one"
            ) from error

    def progress(self) -> Progress:
        """Return the progress of its run.

        Raises:
            DamagedError: It cannot be read.
        """
        if self._progress is None:
            data = self._read("progress.json")
            try:
                self._progress = read_progress(data)
            except ValueError as error:
                raise self._damaged("progress.json", error) from error
        return self._progress

    @property
    def layers(self) -> list[str]:
        """Return the names of its model's layers, in order."""
        return list(self._manifest.layers)

    def shapes(self, layer: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters that one of its layers owns, by name."""
        return dict(self._manifest.layers[layer].parameters)

    def weights(self, layer: str) -> dict[str, Tensor]:
        """Return the parameters and buffers that one of its layers owns, by name; they are not kept.

        Raises:
            DamagedError: The layer's file cannot be read.
        """
        tensors = self._open(layer).tensors
        del self._opened[layer]
        kinds = ("weight.", "buffer.")
        return {key.partition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith(kinds)}

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
            UserError: As `prepare`.
        """
        expected = first_step(optimizer)
        self.prepare(layers, optimizer, optimizer_name, expected).apply(optimizer)

    def prepare(
        self,
        layers: Sequence[BuiltLayer],
        optimizer: torch.optim.Optimizer | None,
        optimizer_name: str,
        expected: Expected,
    ) -> Restoration:
        """Read and check what a rank's layers and its optimizer need.

        Raises:
            DamagedError: A file is damaged.
            UserError: A parameter has another shape, or the optimizer is different.
        """
        saved_with = self.progress().optimizer
        if saved_with != optimizer_name:
            raise UserError(
                f"the checkpoint {self.path} was made with optimizer={saved_with}, "
                f"but this run has optimizer={optimizer_name}"
            )
        found = Restoration(self._weights(layers, self.layers, exactly=True))
        if optimizer is None:
            return found
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for layer in layers:
            for name, parameter in plain_parameters(layer.module).items():
                if parameter in held:
                    owner = own_name(layer.name, name, layer.ties)
                    if state := self._state(owner, parameter, expected):
                        found.states[parameter] = state
        if self._manifest.has("optimizer.json"):
            data = self._read("optimizer.json")
            try:
                found.shared = read_shared(data, optimizer, expected)
            except ValueError as error:
                raise self._damaged("optimizer.json", error) from error
        return found

    def restore_weights(self, layers: Sequence[BuiltLayer], chosen: Collection[str]) -> None:
        """Load only weights and buffers, of the layers whose names are chosen.

        A tied parameter gets its owner's weight if the owner is chosen.

        Raises:
            UserError: A parameter or a buffer has another shape, or a file is damaged.
        """
        Restoration(self._weights(layers, chosen, exactly=False)).apply()

    def _weights(
        self, layers: Sequence[BuiltLayer], chosen: Collection[str], *, exactly: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the parameters and buffers of the chosen layers, each with its saved value.

        Args:
            layers: This rank's layers.
            chosen: The names of those to load.
            exactly: Whether training goes on with them: their types must be equal, and they are the weights
                that train, where the optimizer evaluates other ones.
        """
        kind = "training" if exactly else "weight"
        found: list[tuple[Tensor, Tensor]] = []
        for layer in layers:
            for name, parameter in plain_parameters(layer.module).items():
                owner = own_name(layer.name, name, layer.ties)
                if owner[0] in chosen:
                    saved = self._tensor(owner, kind, parameter, exactly=exactly)
                    self._check_finite(owner, parameter, saved)
                    found.append((parameter, saved))
            if layer.name in chosen:
                for name, buffer in persistent_buffers(layer.module):
                    found.append(
                        (buffer, self._tensor((layer.name, name), "buffer", buffer, exactly=exactly))
                    )
        return found

    def _tensor(self, name: Name, kind: str, target: Tensor, *, exactly: bool) -> Tensor:
        """Return the saved value of a parameter or a buffer."""
        tensors = self._open(name[0]).tensors
        if kind == "training" and f"training.{name[1]}" not in tensors:
            kind = "weight"
        saved = tensors.get(f"{kind}.{name[1]}")
        if saved is None or saved.shape != target.shape:
            theirs = f"no such {kind}" if saved is None else f"shape {tuple(saved.shape)}"
            raise UserError(
                f"the checkpoint {self.path} is of another model: {'/'.join(name)}: {theirs} in the "
                f"checkpoint, shape {tuple(target.shape)} in this model"
            )
        both_float = saved.is_floating_point() and target.is_floating_point()
        if saved.dtype != target.dtype and (exactly or not both_float):
            raise self._damaged(
                self._file(name[0]), f"{kind} {name[1]} is {saved.dtype}, in this model {target.dtype}"
            )
        return saved

    def _check_finite(self, name: Name, parameter: nn.Parameter, saved: Tensor) -> None:
        """Raise if a weight is not finite; one that does not train may be infinite."""
        if not all_finite([saved]) and (parameter.requires_grad or bool(saved.isnan().any())):
            raise self._damaged(self._file(name[0]), f"weight {name[1]} is not finite")

    def _state(self, name: Name, parameter: nn.Parameter, expected: Expected) -> dict[Any, Any]:
        """Return the optimizer's state of a parameter; one of the copies of each tied parameter."""
        try:
            state = self._open(name[0]).state_of(name[1], lambda key: expected.device_of(parameter, key))
            if state:
                expected.check(parameter, state)
                state = expected.in_order(parameter, state)
        except ValueError as error:
            raise self._damaged(
                self._file(name[0]), f"the optimizer's state of {name[1]}: {error}"
            ) from error
        return state

    def _file(self, layer: str) -> str:
        return self._manifest.layers[layer].file

    def _open(self, layer: str) -> Packed:
        """Return the content of a layer's file, which is that of this layer and step."""
        if layer not in self._opened:
            file = self._file(layer)
            data = self._read(file)
            try:
                packed = unpack(data)
                self._check_file(layer, packed)
            except ValueError as error:
                raise self._damaged(file, error) from error
            self._opened[layer] = packed
        return self._opened[layer]

    def _check_file(self, layer: str, packed: Packed) -> None:
        """Raise a ValueError unless a file is that of a layer, as the manifest describes it."""
        step = self.progress().step
        labelled = packed.layer is not None or self._manifest.format > 1
        if (labelled and packed.layer != layer) or packed.step not in (step, None):
            raise ValueError(
                f"it is of layer {packed.layer} after step {packed.step}, not of {layer} after step {step}"
            )
        found = {
            key.removeprefix("weight."): tuple(tensor.shape)
            for key, tensor in packed.tensors.items()
            if key.startswith("weight.")
        }
        if found != self.shapes(layer):
            raise ValueError("its weights are not those of the manifest")

    def _read(self, name: str) -> bytes:
        """Return a file's content, checked against the manifest."""
        expected = self._manifest.files[name]
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise DamagedError(
                f"the checkpoint {self.path} is incomplete: {name}: {error}: use an older one"
            ) from error
        if (len(data), hashlib.sha256(data).hexdigest()) != (expected.bytes, expected.sha256):
            raise DamagedError(
                f"the checkpoint {self.path} is damaged: {name} does not match its manifest "
                f"({len(data)} bytes, expected {expected.bytes}; SHA-256 differs): use an older one"
            )
        return data

    def _damaged(self, file: str, problem: object) -> DamagedError:
        return DamagedError(f"the checkpoint {self.path} is damaged: {file}: {problem}: use an older one")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")  # noqa: PLR2004
