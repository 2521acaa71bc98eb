"""Text is generated token by token: how the next token is chosen, and that no cut changes it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.one_process import Given, Pipeline
from trainer.config.schema import GenerateConfig, GPTConfig
from trainer.data.dataset import Data
from trainer.generation import Text
from trainer.models.gpt import gpt
from trainer.schedule.assemble import generation_schedule
from trainer.schedule.merge import merge_for_rank

GPT = GPTConfig(blocks=3, width=16, heads=2, context=8, dropout=0.1)
CUTS = [[1, 1, 1, 1, 1], [2, 3], [4, 1], [1, 3, 1]]
PROMPT = [1, 2, 3]
TOKENS = 12  # together with the prompt more than the context of 8


class Tokens:
    """Only a shape, as a GPT needs it before it is built."""

    def inputs(self, samples: np.ndarray) -> Tensor:
        return torch.zeros(len(samples), 8, dtype=torch.int64)


DATA = Data(Tokens(), Tokens(), "", vocabulary=11)  # type: ignore[arg-type]


def written(sizes: list[int], config: GenerateConfig, seed: int = 0) -> list[int]:
    """Return what a GPT with this cut writes after the prompt."""
    pipeline = Pipeline(gpt(GPT, DATA), sizes)
    text = Text(PROMPT, TOKENS, GPT.context, config, seed)
    actions = merge_for_rank(generation_schedule(range(len(sizes)), TOKENS), range(len(sizes)))
    assert pipeline.engine.infer(actions, text) == {}
    return text.tokens


def sampled(logits: list[float], config: GenerateConfig, number: int = 300) -> set[int]:
    """Return the set of tokens that sampling chooses."""
    text = Text([0], 1, 8, config, seed=0)
    output = torch.tensor([[[0.0] * len(logits), logits]])  # only the last position counts
    return {int(text.sample(output)) for _ in range(number)}


def test_most_likely_tokens_match_a_plain_loop() -> None:
    network = torch.nn.Sequential(*(layer.module for layer in Pipeline(gpt(GPT, DATA), [5]).layers)).eval()
    tokens = list(PROMPT)
    for _ in range(TOKENS):
        logits = network(torch.tensor([tokens[-GPT.context :]]))
        tokens.append(int(logits[0, -1].argmax()))
    assert written([5], GenerateConfig(temperature=0)) == tokens


def test_a_source_without_tokens_cannot_generate() -> None:
    pipeline = Pipeline(gpt(GPT, DATA), [2, 3])
    actions = merge_for_rank(generation_schedule(range(2), 1), range(2))
    with pytest.raises(TypeError, match="needs a TokenSource, not Given"):
        pipeline.engine.infer(actions, Given([torch.tensor([PROMPT])], [None]))


@pytest.mark.parametrize("sizes", CUTS)
def test_cut_changes_no_token(sizes: list[int]) -> None:
    config = GenerateConfig(temperature=1.0)
    assert written(sizes, config) == written([5], config)


def test_seed_decides() -> None:
    config = GenerateConfig(temperature=1.0)
    assert written([5], config) != written([5], config, seed=1)
    assert written([5], config)[:3] == PROMPT


def test_temperature() -> None:
    logits = [0.0, 1.0, 3.0]
    assert sampled(logits, GenerateConfig(temperature=0)) == {2}
    assert sampled(logits, GenerateConfig(temperature=0.01)) == {2}
    assert sampled(logits, GenerateConfig(temperature=10.0)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("top_k", "chosen"), [(1, {2}), (2, {1, 2}), (3, {0, 1, 2}), (99, {0, 1, 2}), (0, {0, 1, 2})]
)
def test_top_k(top_k: int, chosen: set[int]) -> None:
    assert sampled([0.0, 1.0, 1.5], GenerateConfig(temperature=2.0, top_k=top_k)) == chosen


def test_signatures_are_the_lengths_of_the_input() -> None:
    text = Text(PROMPT, 7, 8, GenerateConfig(), seed=0)
    assert text.signatures() == [3, 4, 5, 6, 7, 8, 8]
    for new, length in enumerate(text.signatures(), start=4):
        assert text.inputs(0).tolist() == [list(range(new - length, new))]  # the newest ones
        text.append(torch.tensor([new]))
