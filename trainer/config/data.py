"""The configuration of every kind of data. To add a kind: its module, and its declaration here."""

from dataclasses import dataclass

from omegaconf import MISSING

from trainer.config.custom import CustomConfig
from trainer.config.fields import not_negative, one_of, plain, positive, share, text, true_share
from trainer.config.registry import choice


@dataclass
class DataConfig:
    """What every kind of data has."""

    name: str = plain(MISSING, "the kind of data; `data=...` sets it")


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
    tokenizer: str = plain("bytes", "`bytes`, or the path of a file of the `tokenizers` library")
    context: int = positive(128, "length of a sample; follows `model.context`", unit="tokens")
    validation: float = true_share(0.05, "share of the text, at its end, that is held out for validation")
    objective: str = one_of(
        "next", ("next", "masked"), "what a model predicts: the next token, or masked tokens as BERT does"
    )
    masked: float = true_share(0.15, "share of the tokens that are predicted, with `objective=masked`")
    masking: str = one_of(
        "static",
        ("static", "dynamic"),
        "whether a sample is masked alike each time, or otherwise in every step; validation is static",
    )
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


@choice(
    "data",
    build="trainer.data.pairs:load",
    prepare="trainer.data.pairs:prepare",
    example="trainer.data.pairs:example",
)
@dataclass
class PairsConfig(DataConfig):
    """Two segments of a document each, of whole lines, with masked tokens: what BERT trains on."""

    name: str = "pairs"
    path: str | None = plain(
        None, "a file or a folder of text; null reads the source of Python's standard library"
    )
    pattern: str = plain("*", "which files of a folder to read")
    documents: str = one_of(
        "files", ("files", "paragraphs"), "where a document ends: with its file, or at blank lines too"
    )
    tokenizer: str = plain("bytes", "`bytes`, or the path of a file of the `tokenizers` library")
    context: int = positive(128, "length of the longest sample; follows `model.context`", unit="tokens")
    short: float = share(0.1, "share of the samples that are cut shorter than the context, at random")
    segments: bool = plain(True, "whether the inputs name each token's segment; some models have none")
    validation: float = true_share(0.05, "share of the samples, at the end, that is held out for validation")
    masked: float = true_share(0.15, "share of the tokens that are predicted")
    masking: str = one_of(
        "dynamic",
        ("static", "dynamic"),
        "whether a sample is masked alike each time, or otherwise in every step; validation is static",
    )
    cache: str = plain(MISSING, "folder for token files; each node writes them once")


@choice("data", build="trainer.hf.prompts:load", prepare="trainer.hf.prompts:prepare")
@dataclass
class PromptsConfig(DataConfig):
    """Prompts and their completions, or conversations: what a model of Hugging Face's is fine-tuned on."""

    name: str = "prompts"
    path: str = plain(MISSING, "a jsonl file of `{prompt, completion}` or `{messages: [{role, content}]}`")
    tokenizer: str = plain(MISSING, "folder of the model's tokenizer; follows `model.path`")
    context: int = positive(1024, "tokens beyond which a sample is cut off", unit="tokens")
    validation: float = true_share(0.05, "share of the samples that is held out for validation")
    seed: int = not_negative(0, "seed of the choice of these")
    cache: str = plain(MISSING, "folder for token files; each node writes them once")


@choice(
    "data",
    build="trainer.data.speech.load:load",
    prepare="trainer.data.speech.load:prepare",
    example="trainer.data.speech.load:example",
)
@dataclass
class SpeechDataConfig(DataConfig):
    """Recordings with transcripts, in folders as LibriSpeech has them, as log-mel features and letters."""

    name: str = "speech"
    path: str = plain(MISSING, "the folder of the recordings to train on")
    validation_path: str | None = plain(
        None, "a folder of recordings for validation; null holds out some speakers of `path`"
    )
    validation: float = true_share(0.05, "share of the speakers that is held out, at least one")
    seed: int = not_negative(0, "seed of the choice of these")
    letters: str | None = plain(
        None, "the letters of transcripts, without the space; null takes those that occur in training"
    )
    longest: float = positive(35.0, "longer recordings are left out", unit="seconds")
    features: int = positive(80, "mel bands of a frame")
    lowest: float = not_negative(20.0, "lower end of the first band", unit="hertz")
    highest: float = positive(7600.0, "upper end of the last band", unit="hertz")
    window: float = positive(0.025, "length of a frame", unit="seconds")
    hop: float = positive(0.01, "from one frame to the next", unit="seconds")
    cache: str = plain(MISSING, "folder for files of features; each node writes them once")


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
