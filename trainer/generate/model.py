"""The trained model: from a run, one of its checkpoints, or the folder of a Hugging Face model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainer.checkpoint.trained import load_trained
from trainer.config.registry import chosen
from trainer.config.schema import BatchConfig, Config, HFConfig, TextConfig
from trainer.data.build import example_data, load_data
from trainer.data.dataset import Data, Tokenizer
from trainer.data.text import Windows
from trainer.data.tokenizer import build_tokenizer
from trainer.distributed.world import World
from trainer.errors import UserError
from trainer.run import Run

_SAMPLE = 8  # tokens of the samples that stand for data


@dataclass(frozen=True)
class Trained:
    """A model with its weights, and what to know of it.

    Attributes:
        run: Its layers, cut and placed.
        tokenizer: Turns text into tokens and back.
        vocabulary: The number of tokens that it knows.
        context: The most tokens that it takes; None: no limit.
        ends: The tokens that end a text.
        origin: Where the weights are from, in words.
    """

    run: Run
    tokenizer: Tokenizer
    vocabulary: int
    context: int | None
    ends: Sequence[int]
    origin: str


def load_model(config: Config, world: World) -> Trained:
    """Return the configured model on all ranks; it reads no data.

    Raises:
        UserError: Its weights, its tokenizer or itself cannot be used to write texts; says why.
    """
    config.batch = BatchConfig(global_size=world.size, micro_size=1)  # nothing trains
    if isinstance(config.model, HFConfig):
        return _hugging_face(config, config.model, world)
    data = _without_samples(config, world)
    tokenizer = _tokenizer(config, data.tokenizer)
    if data.vocabulary is None:
        raise UserError(f"data={config.data.name} has no tokens, so its model writes no texts")
    if isinstance(config.data, TextConfig) and config.data.objective == "masked":
        raise UserError(
            "the model was trained to fill gaps (data.objective=masked), not to continue texts: use one that "
            "was trained with data.objective=next"
        )
    run = Run(config, world, data)
    origin = load_trained(config, run.layers, run.model, world)
    return Trained(run, tokenizer, data.vocabulary, run.context(), (), origin)


def _hugging_face(config: Config, model: HFConfig, world: World) -> Trained:
    from trainer.hf.build import check_installed  # noqa: PLC0415

    check_installed()
    from trainer.hf import folder  # noqa: PLC0415  (imports transformers)

    settings = folder.read_config(model)
    kind = folder.model_class(settings, model.path)
    if not kind.can_generate():
        raise UserError(f"model.path={model.path}: {kind.__name__} fills gaps and does not continue texts")
    settings = settings.get_text_config(decoder=True)
    context: int | None = getattr(settings, "max_position_embeddings", None)
    tokenizer, own = _hugging_face_tokenizer(config, model)
    _check_vocabulary(tokenizer.vocabulary, settings.vocab_size, model.path, exactly=not own)
    size = min(_SAMPLE, context or _SAMPLE)
    windows = Windows(np.zeros(2 * size + 1, dtype=np.uint8), size)
    run = Run(config, world, Data(windows, windows, "none", vocabulary=settings.vocab_size))
    origin = load_trained(config, run.layers, run.model, world)
    ends = folder.end_tokens(model.path, settings)
    return Trained(run, tokenizer, settings.vocab_size, context, ends, origin)


def _hugging_face_tokenizer(config: Config, model: HFConfig) -> tuple[Tokenizer, bool]:
    """Return the tokenizer, and whether it is that of the model's folder."""
    of_run = config.run.dir is not None or config.checkpoint.resume not in ("auto", "none")
    if config.generate.tokenizer != "auto":
        return _tokenizer(config, None), False
    if of_run and isinstance(config.data, TextConfig):
        return build_tokenizer(config.data.tokenizer), False
    from trainer.hf.tokenizer import FolderTokenizer  # noqa: PLC0415  (imports transformers)

    return FolderTokenizer(model.path), True


def _without_samples(config: Config, world: World) -> Data:
    """Return data of the run's kind, of which samples are read only if it has no examples."""
    if chosen("data", config.data).example is None:
        return load_data(config.data, world)
    name: Any = getattr(config.data, "tokenizer", None)
    tokenizer = None if name is None else build_tokenizer(name)
    return replace(example_data(config.data), tokenizer=tokenizer)


def _tokenizer(config: Config, own: Tokenizer | None) -> Tokenizer:
    """Return the configured tokenizer, or the data's own."""
    name = config.generate.tokenizer
    found = own if name == "auto" else build_tokenizer(name)
    if found is None:
        raise UserError(
            f"data={config.data.name} has no tokenizer, which turns prompts into tokens: give "
            "generate.tokenizer=bytes, or generate.tokenizer=FILE with one of the tokenizers library"
        )
    if own is not None:
        _check_vocabulary(found.vocabulary, own.vocabulary, "the run", exactly=True)
    return found


def _check_vocabulary(theirs: int, ours: int, model: str, *, exactly: bool) -> None:
    if exactly and theirs > ours:
        raise UserError(
            f"the tokenizer has {theirs} tokens, and the model of {model} knows {ours}: use the tokenizer "
            "that it was trained with"
        )
