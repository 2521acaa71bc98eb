"""The configuration of every kind of data. To add a kind: its module, and its declaration here."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from trainer.config.custom import CustomConfig
from trainer.config.fields import not_negative, one_of, plain, positive, text, true_share
from trainer.config.registry import choice


@dataclass
class DataConfig:
    """What every kind of data has."""

    name: str = plain(MISSING, "the kind of data; `data=...` sets it")
    workers: int = not_negative(
        0, "processes of each rank that reads, which read the next step's samples; 0: the rank itself reads"
    )


@choice(
    "data",
    build="trainer.data.text:load",
    prepare="trainer.data.text:prepare",
    example="trainer.data.text:example",
)
@dataclass
class TextConfig(DataConfig):
    """Text as tokens, cut into samples of `context` tokens."""

    name: str = "text"
    path: str | None = plain(
        None, "a file or a folder of text; null reads the source of Python's standard library"
    )
    pattern: str = plain("*", "which files of a folder to read")
    mixture: list[Any] = plain(
        [],
        "sources and how often each is trained on, in place of `path`, such as "
        "`[{path: books, weight: 3}, {path: web, pattern: '*.jsonl', weight: 1}]`",
    )
    format: str = one_of(
        "auto",
        ("auto", "text", "jsonl", "parquet"),
        "the files' format; `auto` goes by their names; a folder of `datasets` is recognised",
    )
    field: str = plain("text", "the field of JSON lines, or the column of a table, that holds the text")
    tokenizer: str = plain(
        "bytes",
        "`bytes`, or a file of the `tokenizers` library, or a folder with a tokenizer.json; "
        "`${own_tokenizer:}` is that of `model=hf`, if there is one, else `bytes`",
    )
    context: int = positive(128, "length of a sample; follows `model.context`", unit="tokens")
    validation: float = true_share(0.05, "share of the text, at its end, that is held out for validation")
    objective: str = one_of(
        "next", ("next", "masked"), "what a model predicts: the next token, or masked tokens as BERT does"
    )
    masked: float = true_share(0.15, "share of the tokens that are predicted, with `objective=masked`")
    cache: str = plain(MISSING, "folder for token files; each node writes them once")


@choice("data", build="trainer.data.binary:binary")
@dataclass
class BinaryConfig(DataConfig):
    """Random features, each sample labelled 0 or 1 by a linear rule."""

    name: str = "binary"
    samples: int = positive(1000, "training samples")
    features: int = positive(10, "features of a sample")
    validation: int = not_negative(200, "further samples, held out for validation")
    seed: int = not_negative(0, "seed of the features and of the rule")


@choice("data", build="trainer.data.digits:digits")
@dataclass
class DigitsConfig(DataConfig):
    """Handwritten digits: 1,797 images of 8 x 8, which scikit-learn brings along."""

    name: str = "digits"
    validation: float = true_share(0.2, "share of the images of each digit that is held out for validation")
    seed: int = not_negative(0, "seed of the choice of these")


@choice("data", build="trainer.data.custom:load", prepare="trainer.data.custom:prepare")
@dataclass
class CustomDataConfig(CustomConfig, DataConfig):
    """Custom data: `target(**options)` returns a dataset of torch's, two of them, or the trainer's `Data`."""

    prepare: str | None = plain(
        None, "what one rank of each node calls first, with the same options, as `package.module:callable`"
    )
    collate: str | None = plain(
        None, "what makes a batch of a list of a dataset's items, as `package.module:callable`; null: torch's"
    )
    targets: list[str] = text(
        [],
        "which entries of a dataset's items are the targets, if these are dicts and not pairs",
        "a list of names, such as [labels]",
    )
    validation: float = true_share(0.05, "share of one dataset that is held out for validation")
