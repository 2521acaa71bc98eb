"""Weights from safetensors files: each layer reads its own tensors, of the files that have them."""

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

from trainer.cut.parts import tensors
from trainer.cut.weights import RecordedWeights
from trainer.errors import UserError

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHOWN = 3


@dataclass(frozen=True)
class _Saved:
    """What the files have of a tensor of the model, or of several that are made of the same.

    Attributes:
        path: The first of these in the model.
        parts: The file and the name there of each stored tensor, and the converter's pattern for it.
        converter: Makes the model's tensors of the stored ones, as of experts; None: there is one, as it is.
    """

    path: str
    parts: list[tuple[str, str, str]]
    converter: WeightConverter | None = None

    def read(self, opened: Callable[[str], Any], model: Any) -> dict[str, Tensor]:
        """Return the model's tensors, by path.

        Args:
            opened: Returns the open file of a name.
            model: The model, on the meta device.
        """
        stored = [(pattern, name, opened(file).get_tensor(name)) for file, name, pattern in self.parts]
        if self.converter is None:
            return {self.path: stored[0][2]}
        converter = deepcopy(self.converter)  # it keeps what it is given
        for pattern, name, tensor in stored:
            converter.add_tensor(self.path, name, pattern, tensor)
        made = converter.convert(self.path, model=model, config=model.config)
        return {path: value[0] if isinstance(value, list) else value for path, value in made.items()}


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
        saved = {path: found for path in paths if (found := self._found.get(id(self._kept[path])))}
        values = super().values([path for path in paths if path not in saved])
        with ExitStack() as files:
            opened = cache(lambda file: files.enter_context(_opened(self._folder / file)))
            made = {id(found): self._read(found, opened) for found in saved.values()}
        for path, found in saved.items():
            own = {id(self._kept[name]): value for name, value in made[id(found)].items()}
            values[path] = self._checked(own[id(self._kept[path])], found, path)
        return values

    def _read(self, saved: _Saved, opened: Callable[[str], Any]) -> dict[str, Tensor]:
        try:
            return saved.read(opened, self.skeleton)
        except (RuntimeError, ValueError, SafetensorError) as error:
            names = ", ".join(name for _, name, _ in saved.parts[:_SHOWN])
            reason = str(error).splitlines()[0]
            raise UserError(
                f"model.path={self._folder}: {saved.path} cannot be made of {names}, ...: {reason}"
            ) from error

    def _checked(self, value: Tensor, saved: _Saved, path: str) -> Tensor:
        expected = self._tensors[path]
        if value.shape != expected.shape:
            raise UserError(
                f"model.path={self._folder}: {saved.parts[0][1]} has the shape {tuple(value.shape)}, the "
                f"model's {path} {tuple(expected.shape)}: model.config and the files do not fit"
                if saved.converter is None
                else f"model.path={self._folder}: the {len(saved.parts)} tensors such as {saved.parts[0][1]} "
                f"make one of shape {tuple(value.shape)}, the model's {path} is {tuple(expected.shape)}: "
                "the files lack some, or model.config does not fit them"
            )
        return value.to(expected.dtype)

    def _named(self, every: dict[str, Tensor]) -> dict[int, _Saved]:
        """Return what the files have of every saved tensor, by the tensor's identity."""
        model: Any = self.skeleton
        transforms = get_model_conversion_mapping(model)
        converters = [each for each in transforms if isinstance(each, WeightConverter)]
        renamings = [each for each in transforms if not isinstance(each, WeightConverter)]
        by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
        state = model.state_dict(keep_vars=True)
        found: dict[int, _Saved] = {}
        files = self._files()
        for name in sorted(files, key=dot_natural_key):  # experts in the order of their numbers
            path, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
            if path not in every and name in every:  # saved in the model's own form
                path, pattern = name, None
            if path not in every:
                continue
            if pattern is None:
                found[id(every[path])] = _Saved(path, [(files[name], name, name)])
                continue
            saved = found.setdefault(id(every[path]), _Saved(path, [], by_pattern[pattern]))
            saved.parts.append((files[name], name, pattern))
            first, *others = by_pattern[pattern].target_patterns
            for other in others:
                if (also := path.replace(first, other)) in every:
                    found[id(every[also])] = saved
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
