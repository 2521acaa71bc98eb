"""The tokenizer in a model's folder, as transformers uses it: with the special tokens of its model."""

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

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with the special ones that the model expects before it."""
        return list(self._tokenizer(text)["input_ids"])

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens, without special ones."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def count_bytes(self, tokens: list[int]) -> int:
        """Return the number of bytes of the tokens' text."""
        return len(self.decode(tokens).encode())
