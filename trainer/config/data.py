"""The configuration of every kind of data. To add a kind: its module, and its declaration here."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from trainer.config.custom import CustomConfig
from trainer.config.fields import (
    all_positive,
    not_negative,
    one_number,
    one_of,
    plain,
    positive,
    share,
    text,
    true_share,
)
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
    rotation: float = not_negative(0.0, "by how much a training image is turned at random", unit="degrees")
    zoom: float = positive(1.0, "by which factor it is enlarged or reduced at random")
    shift: float = not_negative(0.0, "by how far it is shifted at random, on both axes", unit="pixels")


@choice("data", build="trainer.data.scenes:scenes")
@dataclass
class ScenesConfig(DataConfig):
    """Noisy scenes of several handwritten digits, each pixel labelled with its digit or as background."""

    name: str = "scenes"
    samples: int = positive(2000, "training scenes")
    validation: int = not_negative(200, "further scenes, of digits held out for validation")
    size: int = positive(48, "side of a scene; a digit is 16 wide", unit="pixels")
    digits: int = positive(3, "digits of a scene; later ones may hide parts of earlier ones")
    noise: float = not_negative(0.2, "standard deviation of the noise; ink is up to 1")
    seed: int = not_negative(0, "seed of the scenes")


@choice("data", build="trainer.data.cifar10:load", example="trainer.data.cifar10:example")
@dataclass
class Cifar10Config(DataConfig):
    """CIFAR-10: 60,000 photographs of 32 x 32 in 10 classes, from the files of its page."""

    name: str = "cifar10"
    path: str = plain(MISSING, "the folder cifar-10-batches-py or cifar-10-batches-bin, or one that has it")
    padding: int = not_negative(
        4, "by how far a training image is shifted at random, on both axes", unit="pixels"
    )
    flip: bool = plain(True, "whether a training image is mirrored at random")
    mean: list[float] = plain([0.4914, 0.4822, 0.4465], "mean of each channel, from 0 to 1; it becomes 0")
    std: list[float] = all_positive(
        [0.247, 0.2435, 0.2616], "standard deviation of each channel; it becomes 1"
    )


@choice("data", build="trainer.data.images:load", example="trainer.data.images:example")
@dataclass
class ImagesConfig(DataConfig):
    """Image files in a folder for each class: `train/CLASS/...` and `val/CLASS/...`, or `CLASS/...`."""

    name: str = "images"
    path: str = plain(MISSING, "the folder; of one without `train`, a share is held out for validation")
    size: int = positive(224, "side of the images that the model gets", unit="pixels")
    resize: int | None = positive(
        None,
        "shorter side to which images are resized before they are cropped; null: 8/7 of `size`",
        unit="pixels",
    )
    channels: int = one_number(3, (1, 3), "1 for shades of grey, 3 for colours")
    crop: str = one_of(
        "resized",
        ("none", "padded", "resized"),
        "how a training image is cropped: in the middle, shifted by `padding`, or to a random part, resized",
    )
    smallest: float = share(0.08, "smallest share of an image's area that `crop=resized` takes")
    padding: int = not_negative(4, "how far `crop=padded` shifts, on both axes", unit="pixels")
    flip: bool = plain(True, "whether a training image is mirrored at random")
    mean: list[float] = plain([0.485, 0.456, 0.406], "mean of each channel, from 0 to 1; it becomes 0")
    std: list[float] = all_positive([0.229, 0.224, 0.225], "standard deviation of each channel; it becomes 1")
    validation: float = true_share(0.1, "share of each class that is held out, of a folder without `train`")
    seed: int = not_negative(0, "seed of the choice of these")
    classes: int | None = positive(None, "number of classes; with it, `trainer.plan` needs no files")


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
