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
        text: The text; empty for a conversation.
        where: Where it is from, for messages.
        given: The object that it is the `prompt` of; what else is in it is written out again.
    """

    text: str
    where: str
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> list[dict[str, str]] | None:
        """Return the conversation that an assistant's next message continues, if it is one."""
        return None if "prompt" in self.given else self.given.get("messages")


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
        place = f"line {number} of {where}"
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not JSON: {error}") from error
        if isinstance(given, dict) and "prompt" not in given and _is_conversation(given.get("messages")):
            yield Prompt("", place, given)
        elif isinstance(given, dict) and isinstance(given.get("prompt"), str):
            yield Prompt(given["prompt"], place, given)
        else:
            raise UserError(
                f'{place} must be an object such as {{"prompt": "def "}} or {{"messages": [{{"role": "user", '
                '"content": "2 + 2?"}]}'
            )


def _is_conversation(messages: Any) -> bool:
    """Return whether these are messages, each with the texts `role` and `content`."""
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in messages
        )
    )
