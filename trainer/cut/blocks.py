"""Which parts of a module the cuts fall between, and which parts outside of them hold weights."""

from collections.abc import Collection, Iterator, Sequence

from torch import nn

from trainer.errors import UserError, suggest

# These are never called themselves: their children are.
LISTS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def find_blocks(model: nn.Module, names: Sequence[str], key: str) -> tuple[str, ...]:
    """Return the paths of a model's blocks, in the order of the names.

    Args:
        model: The model.
        names: Paths of submodules; a `ModuleList` or `Sequential` stands for its children.
        key: The dotted key that they come from, for messages.

    Raises:
        UserError: There is no such part, or one is within another.
    """
    if not names:
        raise UserError(f"{key} is empty: name the parts to cut between; {_parts(model)}")
    found: list[str] = []
    for name in names:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            near = suggest(name, [path for path, _ in model.named_modules() if path])
            raise UserError(f"{key}={name}: the model has no such part{near}; {_parts(model)}") from None
        children = list(_children(module, name))
        if isinstance(module, (*LISTS, nn.Sequential)) and not children:
            raise UserError(f"{key}={name} is empty")
        found += children or [name]
    for path in found:
        for other in found:
            if path != other and path.startswith(f"{other}."):
                raise UserError(f"{key}: {path} is a part of {other}, which is a block too")
    if len(set(found)) < len(found):
        twice = next(path for path in found if found.count(path) > 1)
        raise UserError(f"{key} names {twice} twice")
    return tuple(found)


def outer_modules(model: nn.Module, blocks: Collection[str]) -> tuple[str, ...]:
    """Return the paths of the largest modules with parameters that neither are nor hold blocks."""

    def walk(module: nn.Module, prefix: str) -> Iterator[str]:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if path in blocks or next(child.parameters(), None) is None:
                continue
            if isinstance(child, LISTS) or any(block.startswith(f"{path}.") for block in blocks):
                yield from walk(child, f"{path}.")
            else:
                yield path

    return tuple(walk(model, ""))


def _children(module: nn.Module, path: str) -> Iterator[str]:
    """Yield the blocks that a list stands for; lists within lists are lists too."""
    for name, child in module.named_children():
        if isinstance(module, LISTS) and isinstance(child, LISTS):
            yield from _children(child, f"{path}.{name}")
        elif isinstance(module, (*LISTS, nn.Sequential)):
            yield f"{path}.{name}"


def _parts(model: nn.Module) -> str:
    return f"it has {', '.join(name for name, _ in model.named_children()) or 'no parts'}"
