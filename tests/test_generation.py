"""Text is generated token by token: how the next is chosen, and that no cut, group or cache changes it."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.one_process import Given, Pipeline
from tests.support.writing import NoTokenizer, writer, written
from trainer.config.schema import GenerateConfig, GPTConfig
from trainer.data.dataset import Data
from trainer.generate.sampling import Sampler, likeliest, nucleus, penalised
from trainer.generate.texts import Batches, Text
from trainer.generate.writer import ending, stop_at
from trainer.models.gpt import gpt
from trainer.models.model import Layer, Model
from trainer.schedule.assemble import generation_schedule
from trainer.schedule.merge import merge_for_rank
from trainer.schedule.validate import ScheduleError, validate

GPT = GPTConfig(blocks=3, width=16, heads=2, context=8, dropout=0.1)
ROTARY = GPTConfig(blocks=3, width=16, heads=2, context=8, dropout=0.1, positions="rotary")
CUTS = [[1, 1, 1, 1, 1], [2, 3], [4, 1], [1, 3, 1]]
PROMPT = [1, 2, 3]
PROMPTS = [PROMPT, [4], [5, 6, 7, 8, 9], [2, 2], [10, 3, 1, 4]]
TOKENS = 12  # together with the prompt more than the context of 8


class Tokens:
    """Only a shape, as a GPT needs it before it is built."""

    def __len__(self) -> int:
        return 1

    def inputs(self, samples: np.ndarray) -> Tensor:
        return torch.zeros(len(samples), 8, dtype=torch.int64)

    targets = inputs


DATA = Data(Tokens(), Tokens(), "", vocabulary=11)


def wide(pipeline: Pipeline) -> None:
    """Make weights larger, so that the likeliest tokens differ."""
    for layer in pipeline.layers:
        for parameter in layer.module.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(8)


def gpt_writes(
    sizes: Sequence[int],
    config: GenerateConfig,
    prompts: Sequence[Sequence[int]] = (PROMPT,),
    *,
    model: GPTConfig = GPT,
    **options: int,
) -> list[list[int]]:
    """Return what a GPT with this cut writes after prompts."""
    found = writer(gpt(model, DATA), sizes, config, model.context, change=wide, **options)
    assert found.cached == config.cache
    return [text.tokens for text in written(found, prompts, config)]


def plain(
    prompt: Sequence[int],
    tokens: int,
    model: GPTConfig = GPT,
    change: Callable[[Tensor, list[int]], Tensor] = lambda logits, _: logits,
) -> list[int]:
    """Return the likeliest tokens after a prompt, by a loop that caches nothing."""
    pipeline = Pipeline(gpt(model, DATA), [5])
    wide(pipeline)
    network = nn.Sequential(*(layer.module for layer in pipeline.layers)).eval()
    found = list(prompt)
    for _ in range(tokens):
        logits = network(torch.tensor([found[-model.context :]]))
        found.append(int(change(logits[0, -1], found).argmax()))
    return found


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("model", [GPT, ROTARY], ids=["learned", "rotary"])
@pytest.mark.parametrize("sizes", [[5], [2, 3]])
def test_most_likely_tokens_match_a_plain_loop(sizes: list[int], model: GPTConfig, cache: bool) -> None:
    """Also where the text outgrows the context, and where prompts of several lengths share a group."""
    expected = [plain(prompt, TOKENS, model) for prompt in PROMPTS]
    assert len({token for tokens in expected for token in tokens}) > 5
    for batch, in_flight in ((1, 1), (3, 1), (2, 2), (5, 1)):
        config = GenerateConfig(tokens=TOKENS, temperature=0, batch=batch, in_flight=in_flight, cache=cache)
        assert gpt_writes(sizes, config, PROMPTS, model=model) == expected


def test_a_source_without_tokens_cannot_generate() -> None:
    pipeline = Pipeline(gpt(GPT, DATA), [2, 3])
    actions = merge_for_rank(generation_schedule(range(2), 1), range(2))
    with pytest.raises(TypeError, match="needs a TokenSource, not Given"):
        pipeline.engine.infer(actions, Given([torch.tensor([PROMPT])], [None]))


@pytest.mark.parametrize("sizes", CUTS)
def test_cut_changes_no_token(sizes: list[int]) -> None:
    config = GenerateConfig(tokens=TOKENS, temperature=1.0, batch=2, in_flight=3)
    assert gpt_writes(sizes, config, PROMPTS) == gpt_writes([5], config, PROMPTS)


def test_neither_the_group_nor_what_is_beside_a_text_changes_what_is_drawn() -> None:
    alone = GenerateConfig(tokens=TOKENS, temperature=1.0, top_k=0, batch=1, in_flight=1)
    expected = gpt_writes([5], alone, PROMPTS)
    assert len(set(map(tuple, gpt_writes([5], alone, [PROMPT] * 3)))) == 3
    for batch, in_flight in ((2, 2), (5, 1), (3, 4)):
        config = GenerateConfig(tokens=TOKENS, temperature=1.0, top_k=0, batch=batch, in_flight=in_flight)
        assert gpt_writes([2, 3], config, PROMPTS) == expected


def test_seed_decides() -> None:
    config = GenerateConfig(tokens=TOKENS, temperature=1.0)
    assert gpt_writes([5], config) != gpt_writes([5], config, seed=1)
    assert gpt_writes([5], config)[0][:3] == PROMPT


def test_each_stage_keeps_the_keys_and_values_of_its_own_layers() -> None:
    config = GenerateConfig(tokens=3, temperature=0, batch=2, in_flight=1)
    found = writer(gpt(GPT, DATA), [1, 2, 2], config, 8)
    kept: list[list[tuple[int, ...]]] = []
    texts = [Text(i, [1, 2], 2, 3) for i in range(2)]

    def finish(text: Text) -> None:
        caches = [stage.caches[0].tensors() for stage in found.stages.values()]
        kept[:] = [[tuple(tensor.shape) for tensor in tensors] for tensors in caches]
        text.finish = "length"

    found.write(texts, finish)
    one = (2, 2, 4, 8)  # two texts, two heads, two tokens of the prompt and two written ones, head width
    assert kept == [[], [one] * 4, [one] * 2]  # embedding; two blocks; a block and the head


def chosen(logits: list[float], config: GenerateConfig, number: int = 300) -> set[int]:
    """Return the set of tokens that sampling chooses."""
    sampler = Sampler(config, seed=0)
    texts = [Text(i, [0], 1, 1) for i in range(number)]
    return set(sampler.choose(torch.tensor([logits] * number), texts, [[]] * number).tolist())


def test_temperature() -> None:
    logits = [0.0, 1.0, 3.0]
    assert chosen(logits, GenerateConfig(temperature=0)) == {2}
    assert chosen(logits, GenerateConfig(temperature=0.01)) == {2}
    assert chosen(logits, GenerateConfig(temperature=10.0)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("top_k", "expected"), [(1, {2}), (2, {1, 2}), (3, {0, 1, 2}), (99, {0, 1, 2}), (0, {0, 1, 2})]
)
def test_top_k(top_k: int, expected: set[int]) -> None:
    assert chosen([0.0, 1.0, 1.5], GenerateConfig(temperature=2.0, top_k=top_k)) == expected


@pytest.mark.parametrize(
    ("top_p", "expected"), [(0.4, {2}), (0.6, {1, 2}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2})]
)
def test_top_p(top_p: float, expected: set[int]) -> None:
    shares = [0.2, 0.3, 0.5]
    logits = torch.tensor(shares).log().tolist()
    assert chosen(logits, GenerateConfig(temperature=1.0, top_k=0, top_p=top_p)) == expected


def test_warpers_as_transformers_has_them() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    process = pytest.importorskip("transformers.generation.logits_process")
    tokens, none = torch.tensor([[3, 7, 7, 20]]), torch.zeros(1, 0, dtype=torch.int64)
    expected = process.RepetitionPenaltyLogitsProcessor(1.7)(tokens, logits[None].clone())[0]
    assert torch.equal(penalised(logits, tokens[0].tolist(), 1.7), expected)
    expected = process.TopKLogitsWarper(9)(none, logits[None].clone())[0]
    assert torch.equal(likeliest(logits, 9), expected)
    for share in (0.1, 0.5, 0.9):
        expected = process.TopPLogitsWarper(share)(none, logits[None].clone())[0]
        assert torch.equal(nucleus(logits, share), expected)


def test_a_penalty_counts_the_prompt_and_what_was_written() -> None:
    config = GenerateConfig(tokens=TOKENS, temperature=0, repetition_penalty=3.0, batch=2)
    penalty = partial(penalised, penalty=3.0)
    expected = [plain(prompt, TOKENS, change=penalty) for prompt in PROMPTS]
    assert gpt_writes([2, 3], config, PROMPTS) == expected
    assert expected != [plain(prompt, TOKENS) for prompt in PROMPTS]


def test_ends() -> None:
    config = GenerateConfig(tokens=5, stop=["7,8,", "9,"])
    finish = ending(config, NoTokenizer(), ends=[3])

    def ended(*tokens: int) -> tuple[list[int], str | None]:
        text = Text(0, [3, 9, *tokens], 2, 5)
        finish(text)
        return text.written, text.finish

    assert ended(1, 2) == ([1, 2], None)
    assert ended(1, 2, 1, 2, 1, 2) == ([1, 2, 1, 2, 1], "length")
    assert ended(1, 3, 1) == ([1], "eos")
    assert ended(1, 7, 8, 3, 1) == ([1, 7, 8], "stop")
    assert ended(9) == ([9], "stop")
    assert ended(1, 1, 1, 1, 1, 9, 3) == ([1, 1, 1, 1, 1], "length")
    assert stop_at([1, 2], ["9,"], NoTokenizer()) is None


def test_a_text_that_ends_leaves_its_place_to_the_next() -> None:
    """Every text is the same as alone, although they end at different times."""
    prompts = [[number] for number in range(11)]
    alone = GenerateConfig(tokens=7, temperature=0, batch=1, in_flight=1)
    ends = [4, 9]
    expected = [
        t.tokens for t in written(writer(gpt(GPT, DATA), [5], alone, 8, change=wide), prompts, alone, ends)
    ]
    lengths = {len(tokens) for tokens in expected}
    assert len(lengths) > 1
    together = GenerateConfig(tokens=7, temperature=0, batch=3, in_flight=2)
    found = writer(gpt(GPT, DATA), [2, 3], together, 8, change=wide)
    assert [text.tokens for text in written(found, prompts, together, ends)] == expected


def test_rounds_waste_no_columns() -> None:
    """Columns in which every text has padding go, and a text that joins begins with its own padding."""
    long, short, late = Text(0, [1] * 9, 9, 2), Text(1, [1] * 3, 3, 40), Text(2, [1] * 5, 5, 4)
    batches = Batches([long, short, late], batch=2, in_flight=1, context=None, cached=True)
    (first,) = batches.next_round()
    assert (first.texts, first.columns, first.padding, first.steps) == ((long, short), 9, (0, 6), 16)

    def finish(text: Text) -> None:
        text.finish = "length" if len(text.written) >= text.limit else None

    batches.end_round([first], [[[1] * 17, [1] * 17]], finish)
    (second,) = batches.next_round()
    assert (second.texts, second.kept, second.columns, second.padding) == ((short, late), (1,), 19, (0, 14))


class Plain(nn.Module):
    """A layer that keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, 11))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens].cumsum(1)


def test_layers_without_a_cache_compute_everything_again() -> None:
    model = Model((Layer("table", Plain), Layer("scale", lambda: nn.Linear(11, 11))), gpt(GPT, DATA).loss)
    config = GenerateConfig(tokens=6, temperature=0, in_flight=2)
    found = writer(model, [1, 1], config, 8)
    assert not found.cached
    texts = written(found, PROMPTS, config)
    network = nn.Sequential(*(layer.module for layer in Pipeline(model, [2]).layers))
    for prompt, text in zip(PROMPTS, texts, strict=True):
        tokens = list(prompt)
        for _ in range(6):
            tokens.append(int(network(torch.tensor([tokens[-8:]]))[0, -1].argmax()))
        assert text.tokens == tokens


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_schedules_of_several_texts_are_valid(stages: int) -> None:
    texts = [2, 0, 0, 1, 2, 0, 1, 1, 2]
    schedule = generation_schedule(range(stages), len(texts), texts)
    validate([schedule])
    first = [str(action) for action in schedule.workers[0]]
    assert first.index(f"rk0.1<{stages - 1}") < first.index("F0.2")  # the same text's
    if stages > 1:
        assert first.index("F0.3") < first.index(f"rk0.2<{stages - 1}")  # another's need not be awaited


def test_a_token_before_the_one_that_it_continues_is_found() -> None:
    schedule = generation_schedule(range(2), 4, [0, 1, 0, 1])
    changed = [action for action in schedule.workers[0] if str(action) != "rk0.0<1"]
    workers = ((*changed, *(a for a in schedule.workers[0] if str(a) == "rk0.0<1")), schedule.workers[1])
    broken = type(schedule)(schedule.name, schedule.placement, 4, workers, schedule.texts)
    with pytest.raises(ScheduleError, match=r"F0.2 comes before rk0.0<1, which it needs"):
        validate([broken])
