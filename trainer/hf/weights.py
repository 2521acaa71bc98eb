"""Weights from safetensors files: each layer reads its own tensors, of the files that have them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key

from trainer.cut.parts import tensors
from trainer.cut.weights import RecordedWeights
from trainer.errors import UserError

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHOWN = 3


class SavedWeights(RecordedWeights):
    """The weights in a folder; what is in no file, such as constant tables, is made by the constructors.

    Args:
        make: Builds the model.
        folder: The folder.

    Raises:
        UserError: A weight is missing or has another shape, or files are unreadable or of another kind.
    """

    def __init__(self, make: Callable[[], nn.Module], folder: Path) -> None:
        super().__init__(make)
        self._folder = folder
        every = self._kept = dict(tensors(self.skeleton))
        self._found = self._named(every)
        saved = self.skeleton.state_dict(keep_vars=True)
        missing = [path for path, tensor in saved.items() if id(tensor) not in self._found]
        missing = [path for path in missing if isinstance(every[path], nn.Parameter)]
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise UserError(f"model.path={folder}: the files have no {', '.join(missing[:_SHOWN])}{more}")

    def values(self, paths: Iterable[str]) -> dict[str, Tensor]:
        """Return the values of some tensors by path: from the files, or as they are made."""
        paths = list(paths)
        known = {path: self._found.get(id(self._kept[path])) for path in paths}
        read = {path: where for path, where in known.items() if where is not None}
        values = super().values([path for path in paths if path not in read])
        for file in sorted({file for file, _ in read.values()}):
            with _opened(self._folder / file) as content:
                for path, (where, name) in read.items():
                    if where == file:
                        values[path] = self._read(content, name, path)
        return values

    def _read(self, content: Any, name: str, path: str) -> Tensor:
        value: Tensor = content.get_tensor(name)
        expected = self._tensors[path]
        if value.shape != expected.shape:
            raise UserError(
                f"model.path={self._folder}: {name} has the shape {tuple(value.shape)}, the model's {path} "
                f"{tuple(expected.shape)}: model.config and the files do not fit"
            )
        return value.to(expected.dtype)

    def _named(self, every: dict[str, Tensor]) -> dict[int, tuple[str, str]]:
        """Return the file and the name there of every saved tensor, by the tensor's identity."""
        model: Any = self.skeleton
        transforms = get_model_conversion_mapping(model)
        converters = [each for each in transforms if isinstance(each, WeightConverter)]
        renamings = [each for each in transforms if not isinstance(each, WeightConverter)]
        state = model.state_dict(keep_vars=True)
        found: dict[int, tuple[str, str]] = {}
        for name, file in self._files().items():
            path, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
            if converted is not None:
                raise UserError(
                    f"model.path={self._folder}: {name} is stored in another form than the model's, as "
                    "experts are, which cannot be read layer by layer yet; use model.load=config"
                )
            if path in every:
                found[id(every[path])] = file, name
        return found

    def _files(self) -> dict[str, str]:
        """Return the file of every tensor, by its name there."""
        index = self._folder / _INDEX
        if index.is_file():
            try:
                names: dict[str, str] = json.loads(index.read_text())["weight_map"]
            except (ValueError, KeyError) as error:
                raise UserError(f"{index} is damaged: {error}") from error
            if any("/" in file for file in names.values()):
                raise UserError(f"{index} names files outside of its folder")
            return names
        if not (self._folder / _ONE).is_file():
            raise UserError(
                f"model.path={self._folder} has neither {_ONE} nor {_INDEX}: save the model with "
                "save_pretrained, or use model.load=config for new weights"
            )
        with _opened(self._folder / _ONE) as content:
            return dict.fromkeys(content.keys(), _ONE)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
