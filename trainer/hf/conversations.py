"""Lines of prompts and completions as tokens, each with whether the model learns to write it.

    {"prompt": "2 + 2 =", "completion": " 4"}        the completion, and the end of the text
    {"messages": [{"role": "user", "content": ...},  what the assistant says, in the words of the tokenizer's
                  {"role": "assistant", ...}]}       own chat template

Where a chat template marks what the assistant writes (`{% generation %}`), that counts. Otherwise it is what
each message of the assistant adds to the conversation before it, which must stay as it was.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.errors import UserError

_ASSISTANT = "assistant"
Tokens = list[tuple[int, bool]]  # each token, and whether it is learnt


class Conversations:
    """Turns lines into tokens.

    Args:
        folder: The folder of the tokenizer.

    Raises:
        UserError: transformers cannot read a tokenizer there.
    """

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer  # noqa: PLC0415  (takes seconds)

        if not Path(folder).is_dir():
            raise UserError(
                f"data.tokenizer={folder} is no folder: give the one that holds the model's tokenizer"
            )
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"data.tokenizer={folder}: transformers cannot read a tokenizer: {reason}"
            ) from error
        self._folder = folder

    def tokens(self, line: str) -> Tokens:
        """Return the tokens of a line.

        Raises:
            UserError: It is not JSON, lacks something, or the chat template refuses it; says nothing of its
                place.
        """
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"not JSON: {error}") from error
        if isinstance(entry, dict) and "messages" in entry:
            return self._conversation(_checked_messages(entry["messages"]))
        if isinstance(entry, dict) and {"prompt", "completion"} <= entry.keys():
            return self._completion(entry["prompt"], entry["completion"])
        has = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise UserError(
            f'it has {has or "nothing"}: it must be an object with "prompt" and "completion", or "messages"'
        )

    def _completion(self, prompt: Any, completion: Any) -> Tokens:
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise UserError("the prompt and the completion must be texts; a conversation goes into messages")
        if not completion:
            raise UserError("the completion is empty: there is nothing to learn")
        end = self._tokenizer.eos_token_id
        given: list[int] = self._tokenizer(prompt)["input_ids"]
        if given and given[-1] == end:  # the text goes on
            given = given[:-1]
        learnt: list[int] = self._tokenizer(completion, add_special_tokens=False)["input_ids"]
        learnt = learnt if end is None else [*learnt, end]
        return [*((token, False) for token in given), *((token, True) for token in learnt)]

    def _conversation(self, messages: list[dict[str, Any]]) -> Tokens:
        template = self._template()
        if "{% generation" in template or "{%- generation" in template:
            made = self._applied(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
            return list(zip(made["input_ids"], map(bool, made["assistant_masks"]), strict=True))
        whole: str = self._applied(messages, tokenize=False)
        spans = list(self._spans(messages, whole))
        # A template writes all special tokens itself.
        made = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        return [
            (token, any(start <= at < end for start, end in spans))
            for token, (at, _) in zip(made["input_ids"], made["offset_mapping"], strict=True)
        ]

    def _spans(self, messages: list[dict[str, Any]], whole: str) -> Iterator[tuple[int, int]]:
        """Yield where in a conversation the assistant's messages begin and end.

        Raises:
            UserError: The template changes what was said before.
        """
        for number, message in enumerate(messages):
            if message["role"] != _ASSISTANT:
                continue
            before: str = self._applied(messages[:number], tokenize=False, add_generation_prompt=True)
            after: str = self._applied(messages[: number + 1], tokenize=False)
            if not (whole.startswith(after) and after.startswith(before)):
                raise UserError(
                    f"the chat template of data.tokenizer={self._folder} changes what was said before "
                    f"message {number + 1}, so what the assistant wrote cannot be found: mark it in the "
                    "template with {% generation %} ... {% endgeneration %}, or give one answer a line"
                )
            yield len(before), len(after)

    def _template(self) -> str:
        template = self._tokenizer.chat_template
        if not template:
            raise UserError(
                f"data.tokenizer={self._folder} has no chat template, which messages need: add "
                "chat_template.jinja to the folder, or give prompts and completions"
            )
        return str(template.get("default", "")) if isinstance(template, dict) else str(template)

    def _applied(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(messages, **options)
        except Exception as error:  # whatever a template raises
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"the chat template refuses the messages: {reason}") from error


def _checked_messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise UserError("messages must be a list of {role, content}")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError(f"message {number} has no role: it must be {{role, content}}")
        if not isinstance(message.get("content"), str):
            raise UserError(f"message {number} has no content that is a text")
    if not any(message["role"] == _ASSISTANT for message in messages):
        raise UserError(f"no message is of the {_ASSISTANT}: there is nothing to learn")
    return messages
