"""`python -m trainer.tokenize`: does ahead of a run, once, what takes long with much text.

    python -m trainer.tokenize data.path=texts tokenize.train=tokenizer.json tokenize.size=8000
    python -m trainer.tokenize data.path=texts data.tokenizer=tokenizer.json

The first trains a vocabulary on the text, writes it, and tokenises the text with it; the second tokenises
with a vocabulary that exists. A run with the same `data.path` and `data.tokenizer` finds the tokens in
`data.cache`. Neither needs ranks.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.command import run_command

if TYPE_CHECKING:
    from trainer.config.schema import Config
    from trainer.distributed.world import World

_EVERY = 5.0  # seconds between two lines


def main() -> None:
    """Tokenise as configured on the command line."""
    run_command(_tokenize, with_ranks=False, prepare=_prepare)


def _prepare(config: "Config") -> None:
    if config.train.steps is None and config.train.epochs is None:
        config.train.steps = 1  # there is no training


def _tokenize(config: "Config", _world: "World | None") -> None:
    from trainer.config.schema import TextConfig  # noqa: PLC0415
    from trainer.data.encoding import tokenise  # noqa: PLC0415
    from trainer.data.text import sources_of  # noqa: PLC0415  (imports torch: after the check)
    from trainer.errors import UserError  # noqa: PLC0415
    from trainer.tokenize.vocabulary import train_vocabulary  # noqa: PLC0415

    data, asked = config.data, config.tokenize
    if not isinstance(data, TextConfig):
        raise UserError(f"trainer.tokenize needs data=text, not data={data.name}")
    texts = [text for text, _ in sources_of(data)]
    tokenizer = data.tokenizer
    if asked.train is not None:
        start = time.monotonic()
        count = train_vocabulary(texts, asked)
        _say(f"trained: {count} tokens in {time.monotonic() - start:.1f} s, {asked.train}")
        tokenizer = asked.train
    for text in texts:
        progress = _Progress(text.path or "the standard library")
        workers = None if asked.workers == "auto" else int(asked.workers)
        description, known = tokenise(text, tokenizer, Path(data.cache), workers, progress)
        progress.end(description.tokens, known=known)
        for note in description.notes:
            _say(f"note: {note}")
    path = f"data.path={data.path} " if data.path is not None else ""
    _say(f"train with: {path}data.tokenizer={tokenizer} data.cache={data.cache}")


class _Progress:
    """Prints a line now and then.

    Args:
        name: What is tokenised.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._start = self._said = time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        """Say how many bytes are done, if it is time to."""
        now = time.monotonic()
        if now - self._said >= _EVERY:
            self._said = now
            speed = done / 1e6 / (now - self._start)
            _say(f"{self._name}: {done / 1e6:,.0f} of {of / 1e6:,.0f} MB, {speed:.1f} MB/s")

    def end(self, tokens: int, *, known: bool) -> None:
        """Say how many tokens there are."""
        took = "were there already" if known else f"in {time.monotonic() - self._start:.1f} s"
        _say(f"{self._name}: {tokens:,} tokens {took}")


def _say(text: str) -> None:
    print(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
