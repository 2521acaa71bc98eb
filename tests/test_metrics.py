"""Metrics against counts by hand, and what they refuse."""

import math
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F

from trainer.activation import Activation
from trainer.config.schema import BinaryConfig
from trainer.data.binary import binary
from trainer.data.dataset import Data
from trainer.data.tokenizer import ByteTokenizer, LibraryTokenizer
from trainer.errors import UserError
from trainer.models.metrics import BitsPerByte, Metrics, accuracy, build_metrics, top5
from trainer.pipeline.measures import Measures
from trainer.pipeline.randomness import Randomness

DATA = binary(BinaryConfig())


def data(**facts: Any) -> Data:
    return Data(DATA.training, DATA.validation, "", **facts)


def test_accuracy_of_rows() -> None:
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert accuracy(logits, torch.tensor([1, 1, 1])) == (2, 3)


def test_accuracy_leaves_out_masked_tokens() -> None:
    logits = torch.eye(3).repeat(2, 1, 1)  # [batch, time, classes]; token i is the likeliest at place i
    assert accuracy(logits, torch.tensor([[0, 1, -100], [-100, 0, 2]])) == (3, 4)


@pytest.mark.parametrize("shape", [(5, 6), (4, 4)])
def test_accuracy_of_images(shape: tuple[int, int]) -> None:
    logits, classes = torch.randn(2, 4, *shape), torch.randint(4, (2, *shape))
    assert accuracy(logits, classes) == (float((logits.argmax(1) == classes).sum()), classes.numel())


def test_accuracy_of_one_logit() -> None:
    assert accuracy(torch.tensor([[2.0], [-1.0], [3.0]]), torch.tensor([1.0, 1.0, 0.0])) == (1, 3)


def test_top5() -> None:
    logits = torch.arange(10.0).repeat(3, 1)
    assert top5(logits, torch.tensor([9, 5, 4])) == (2, 3)
    assert top5(logits[:, :3], torch.tensor([0, 1, 2])) == (3, 3)


def test_bits_and_perplexity_are_the_cross_entropy() -> None:
    logits, tokens = torch.randn(2, 5, 256), torch.randint(256, (2, 5))
    metrics = build_metrics(["perplexity", "bits_per_byte"], data(tokenizer=ByteTokenizer(), vocabulary=256))
    mean = F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).item()
    pairs = {name: map(float, metric(logits, tokens)) for name, metric in metrics.functions.items()}
    values = {name: metrics.value(name, *pair) for name, pair in pairs.items()}
    assert values == pytest.approx({"perplexity": math.exp(mean), "bits_per_byte": mean / math.log(2)})


def test_nothing_to_count_is_not_a_number() -> None:
    assert math.isnan(build_metrics(["accuracy"], data()).value("accuracy", 0.0, 0.0))


class Threshold:
    """A metric that is a class, made without the data."""

    def __init__(self, at: float = 0.5) -> None:
        self._at = at

    def __call__(self, output: Tensor, target: Tensor) -> tuple[Tensor, int]:
        return (output > self._at).sum(), len(output)


def test_by_import_path_and_by_data() -> None:
    made = build_metrics(["tests.test_metrics:Threshold"], data())
    assert made.functions["Threshold"](torch.tensor([0.0, 1.0]), torch.zeros(2)) == (torch.tensor(1), 2)
    assert list(build_metrics(None, data(metrics=("accuracy",))).functions) == ["accuracy"]
    assert not build_metrics([], data(metrics=("accuracy",))).functions


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["acuracy"], "did you mean accuracy"),
        (["bits_per_byte"], "needs data with a tokenizer"),
        (["math:nothing"], "no 'nothing'"),
        (["accuracy", "trainer.models.metrics:accuracy"], "the same name"),
    ],
)
def test_refusals(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_metrics(names, data())


def measures(function: Any, *, asked: bool = True) -> Measures:
    return Measures(Metrics({"custom": function}, asked), torch.device("cpu"), Randomness(0))


@pytest.mark.parametrize("result", [1.0, (1.0, 2.0, 3.0), (1.0, None), (torch.ones(2), 1.0)])
def test_what_is_no_pair_is_refused(result: Any) -> None:
    with pytest.raises(UserError, match="a sum and a count"):
        measures(lambda *_: result).check(3, torch.ones(2), torch.ones(2))


def test_a_suggested_metric_that_does_not_fit_is_left_out() -> None:
    def fails(output: Activation, target: Activation) -> tuple[float, float]:
        raise ValueError("no")

    assert measures(fails, asked=False).run(0, torch.ones(2), torch.ones(2)) == {}
    with pytest.raises(ValueError, match="no"):
        measures(fails).run(0, torch.ones(2), torch.ones(2))


def test_a_metric_may_write_into_what_it_gets() -> None:
    output = torch.zeros(2)

    def writes(output: Tensor, target: Tensor) -> tuple[Tensor, int]:
        output += 1
        return output.sum(), 2

    of = measures(writes)
    assert [of.run(0, output, torch.ones(2)) for _ in range(2)] == [{"custom": (2.0, 2.0)}] * 2
    assert output.tolist() == [0, 0]


def test_bytes_of_a_byte_level_vocabulary(tmp_path: Any) -> None:
    text = "naïve café: 日本語, é è " * 20
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = LibraryTokenizer(tmp_path / "tokenizer.json")
    tokens = tokenizer.encode(text)
    assert tokenizer.count_bytes(tokens) == len(text.encode())
    parts = [
        tokenizer.count_bytes(tokens[:7]),
        tokenizer.count_bytes(tokens[7:]),
    ]  # within a character or not
    assert sum(parts) == len(text.encode())
    assert isinstance(BitsPerByte(data(tokenizer=tokenizer)), BitsPerByte)
