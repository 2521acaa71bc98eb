"""What texts begin with: from the command line, a file, or standard input."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.config.schema import GenerateConfig
from trainer.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """What a text begins with.

    Attributes:
        text: The text.
        where: Where it is from, for messages.
        given: The object that it is the `prompt` of; what else is in it is written out again.
    """

    text: str
    where: str
    given: dict[str, Any] = field(default_factory=dict)


def read_prompts(config: GenerateConfig) -> list[Prompt]:
    """Return the prompts, in their order.

    Raises:
        UserError: They cannot be read, there are none, or a line is not as it must be.
    """
    if config.prompts is None:
        return [Prompt(config.prompt, f"generate.prompt={config.prompt!r}")]
    where = "standard input" if config.prompts == "-" else f"generate.prompts={config.prompts}"
    try:
        text = sys.stdin.read() if config.prompts == "-" else Path(config.prompts).read_text("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null character in the path
        raise UserError(f"{where} cannot be read: {error}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{where} is empty: give one prompt a line")
    objects = config.prompts.endswith(".jsonl") or (config.prompts == "-" and lines[0][1].startswith("{"))
    return list(_objects(lines, where) if objects else _plain(lines, where))


def _plain(lines: list[tuple[int, str]], where: str) -> Iterator[Prompt]:
    for number, line in lines:
        yield Prompt(line.rstrip("\r"), f"line {number} of {where}")


def _objects(lines: list[tuple[int, str]], where: str) -> Iterator[Prompt]:
    for number, line in lines:
        try:
            given = json.loads(line)
        except ValueError as error:
            raise UserError(f"line {number} of {where} is not JSON: {error}") from error
        if not isinstance(given, dict) or not isinstance(given.get("prompt"), str):
            raise UserError(f'line {number} of {where} must be an object such as {{"prompt": "def "}}')
        yield Prompt(given["prompt"], f"line {number} of {where}", given)
