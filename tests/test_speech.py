"""The speech model: padding changes nothing, the loss is torch's, and what does not fit is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.configs import composed
from tests.support.tones import random_texts, write_corpus
from trainer.config.check import check
from trainer.config.compose import typed
from trainer.config.data import SpeechDataConfig
from trainer.config.models import SpeechConfig
from trainer.config.schema import BinaryConfig
from trainer.data.binary import binary
from trainer.data.build import load_data
from trainer.data.dataset import Data
from trainer.errors import UserError
from trainer.models.model import Model
from trainer.models.speech import CTCLoss, speech
from trainer.plan.report import report

SMALL = {"layers": 2, "width": 6, "channels": 3, "dropout": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Make recordings of several lengths."""
    root = tmp_path_factory.mktemp("tones")
    corpus = write_corpus(root / "corpus", {"anna": random_texts(6, 0), "bert": random_texts(3, 1)})
    path = str(corpus)
    return load_data(
        SpeechDataConfig(path=path, validation_path=path, cache=str(root), features=13, highest=3e3)
    )


def run(model: Model, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    activation = inputs
    for layer in model.layers:
        activation = layer.build()(activation)
    return activation


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("front", ["conv", "stack"])
def test_padding_does_not_change_a_sample(front: str, stride: int, data: Data) -> None:
    model = speech(SpeechConfig(front=front, stride=stride, **SMALL), data)
    inputs = data.training.inputs(np.arange(4))
    lengths = inputs["lengths"].tolist()
    assert len(set(lengths)) > 1
    together = run(model, inputs)
    assert together["lengths"].tolist() == [-(-length // stride) for length in lengths]
    for place, length in enumerate(lengths):
        alone = run(model, data.training.inputs(np.array([place])))
        logits = together["logits"][place, : alone["lengths"]]
        assert alone["logits"].shape == (1, -(-length // stride), 2 + len("'abcd"))
        torch.testing.assert_close(logits, alone["logits"][0], atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_sum_of_torchs(data: Data) -> None:
    model = speech(SpeechConfig(front="stack", stride=3, **SMALL), data)
    samples = np.arange(4)
    output, target = run(model, data.training.inputs(samples)), data.training.targets(samples)
    assert model.loss.count(target) == 4
    wanted = [
        F.ctc_loss(
            logits[:time].log_softmax(-1),
            letters[:length],
            time,
            length,
            reduction="none",
            zero_infinity=True,
        )
        for logits, time, letters, length in zip(
            output["logits"], output["lengths"], target["letters"], target["lengths"], strict=True
        )
    ]
    torch.testing.assert_close(model.loss(output, target), torch.stack(wanted).sum())


def test_a_transcript_that_cannot_fit_costs_nothing() -> None:
    """So that one does not stop a training: the data refuses such recordings, a user's own may not."""
    logits = torch.zeros(1, 2, 4, requires_grad=True)
    output = {"logits": logits, "lengths": torch.tensor([2])}
    target = {"letters": torch.tensor([[2, 2]]), "lengths": torch.tensor([2])}  # needs a blank in between
    loss = CTCLoss()(output, target)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_weight_gets_a_gradient(cell: str, bidirectional: bool, data: Data) -> None:
    model = speech(SpeechConfig(cell=cell, bidirectional=bidirectional, **SMALL), data)
    modules = [layer.build() for layer in model.layers]
    activation = data.training.inputs(np.arange(3))
    for module in modules:
        activation = module(activation)
    model.loss(activation, data.training.targets(np.arange(3))).backward()
    for module in modules:
        for parameter in module.parameters():
            assert parameter.grad is not None
            assert parameter.grad.any()


def test_other_data_is_refused() -> None:
    with pytest.raises(UserError, match="needs recordings with transcripts: use data=speech"):
        speech(SpeechConfig(), binary(BinaryConfig()))


def test_too_large_a_stride_is_refused(data: Data) -> None:
    with pytest.raises(
        UserError, match=r"needs \d+ frames .* has \d+ at model.stride=20: .* lower model.str"
    ):
        speech(SpeechConfig(stride=20), data)


def test_the_full_size_recipe_is_planned(tmp_path: Path) -> None:
    """Without LibriSpeech: over 100 million parameters on eight ranks."""
    overrides = ["experiment=deepspeech", "plan.ranks=8", "plan.memory=24GiB", "schedule=zb_h1"]
    config = typed(composed(*overrides, f"data.path={tmp_path}/nowhere"))
    check(config)
    text = report(config, overrides)
    assert "114,708,925 parameters in 7 layers" in text
    assert "layouts fit, the fastest first" in text
