"""The tokenizer in a model's folder, as transformers uses it: with the special tokens of its model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import AutoTokenizer

from trainer.errors import UserError


class FolderTokenizer:
    """A tokenizer from a folder.

    Args:
        path: The folder.

    Raises:
        UserError: It has none.
    """

    def __init__(self, path: str) -> None:
        remedy = (
            "give generate.tokenizer=FILE with one of the tokenizers library, or generate.tokenizer=bytes"
        )
        names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
        if not any((Path(path) / name).is_file() for name in names):
            raise UserError(f"model.path={path} has no tokenizer: {remedy}")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"model.path={path}: its tokenizer cannot be read ({reason}): {remedy}"
            ) from error

    @property
    def vocabulary(self) -> int:
        """Return the number of tokens."""
        return len(self._tokenizer)

    @property
    def end(self) -> int | None:
        """Return the token that ends a text, if there is one."""
        return self._tokenizer.eos_token_id  # type: ignore[no-any-return]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with the special ones that the model expects before it."""
        return list(self._tokenizer(text)["input_ids"])

    def converse(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the tokens of a conversation, up to where the assistant's next message begins.

        Args:
            messages: Each with a `role` and its `content`.

        Raises:
            UserError: The tokenizer has no chat template, or its template refuses the conversation.
        """
        if not self._tokenizer.chat_template:
            raise UserError("the model's tokenizer has no chat template, which conversations need")
        try:
            written = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # templates raise errors of their own
            raise UserError(f"the chat template refuses it: {error}") from error
        return list(self._tokenizer(written, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens, without special ones."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def count_bytes(self, tokens: list[int]) -> int:
        """Return the number of bytes of the tokens' text."""
        return len(self.decode(tokens).encode())
