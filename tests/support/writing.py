"""A writer of texts whose stages are all in this process."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from tests.support.one_process import Pipeline
from trainer.config.schema import GenerateConfig, GPTConfig
from trainer.generate.texts import Text
from trainer.generate.writer import Writer, ending
from trainer.models.model import Model
from trainer.schedule.merge import merge_for_rank


class NoTokenizer:
    """Tokens as text: their numbers, each with a comma after it."""

    vocabulary = 0

    def encode(self, text: str) -> list[int]:
        return [int(number) for number in text.split(",")[:-1]]

    def decode(self, tokens: list[int]) -> str:
        return "".join(f"{token}," for token in tokens)


def writer(
    model: Model,
    sizes: Sequence[int],
    config: GenerateConfig,
    context: int | None,
    *,
    model_config: Any = None,
    seed: int = 0,
    precision: str = "fp32",
    change: Callable[[Pipeline], None] = lambda _: None,
) -> Writer:
    """Return a writer with a pipeline of stages of these numbers of layers."""
    pipeline = Pipeline(model, sizes)
    change(pipeline)
    group = SimpleNamespace(all_gather_objects=lambda value: [value])
    run: Any = SimpleNamespace(
        config=SimpleNamespace(
            model=GPTConfig() if model_config is None else model_config,
            precision=precision,
            train=SimpleNamespace(seed=seed),
        ),
        stages=pipeline.stages,
        engine=pipeline.engine,
        plan=SimpleNamespace(layout=SimpleNamespace(placement=range(len(sizes)), stages=len(sizes))),
        groups=SimpleNamespace(model_parallel=group),
        world=group,
        randomness=pipeline.randomness,
        optimizer=None,
        holds_last_stage=True,
        actions=lambda schedule: merge_for_rank(schedule, range(len(sizes))),
    )
    return Writer(run, config, context)


def written(
    writer: Writer,
    prompts: Sequence[Sequence[int]],
    config: GenerateConfig,
    ends: Sequence[int] = (),
) -> list[Text]:
    """Return the texts that continue these prompts."""
    texts = [Text(i, list(prompt), len(prompt), config.tokens) for i, prompt in enumerate(prompts)]
    with torch.no_grad():
        writer.write(texts, ending(config, NoTokenizer(), ends))
    return texts
