"""Fine-tuning on prompts: equal in every layout, and to a plain loop of transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.chat import llama, prompts, written
from tests.support.runs import Trained
from trainer.data.order import Order

pytestmark = pytest.mark.parallel

STEPS, BATCH, HELD_OUT = 4, 6, 0.25
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = llama(tmp_path_factory.mktemp("llama"))
    written(prompts(40), path / "sums.jsonl")
    return path


@pytest.fixture(scope="module")
def tuned(finished: Trained, folder: Path) -> Trained:
    """Return a function that fine-tunes on some ranks, once for the same overrides."""
    overrides = [
        "experiment=none",
        "model=hf",
        f"model.path={folder}",
        "data=prompts",
        f"data.path={folder / 'sums.jsonl'}",
        f"data.validation={HELD_OUT}",
        f"data.cache={folder / 'cache'}",
        f"batch.global_size={BATCH}",
        "batch.micro_size=2",
        f"train.steps={STEPS}",
        "train.freeze=[model.embed_tokens*,*/*mlp.up_proj*]",
        "optimizer.lr=0.01",
        "optimizer.weight_decay=0",
        "optimizer.clip=1.0",
        "eval.samples=0",
        "run.dir=run",
        "threads=1",
        "device=cpu",
    ]
    return lambda ranks, *others: finished(ranks, *overrides, *others)


def plain(folder: Path) -> tuple[list[float], list[float], float]:
    """Return the losses, the norms and the last validation loss of a loop without micro-batches."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    samples: list[tuple[list[int], list[int]]] = []
    for entry in prompts(40):
        given = tokenizer(entry["prompt"])["input_ids"]
        learnt = [*tokenizer(entry["completion"])["input_ids"], tokenizer.eos_token_id]
        samples.append((given + learnt, [-100] * len(given) + learnt))
    held_out = np.random.RandomState(0).permutation(40)[: int(HELD_OUT * 40)].tolist()
    training = [sample for i, sample in enumerate(samples) if i not in held_out]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embed_tokens" not in name and "mlp.up_proj" not in name)

    def loss(chosen: list[Any]) -> torch.Tensor:
        longest = max(len(ids) for ids, _ in chosen)
        ids = torch.tensor([[*i, *[tokenizer.eos_token_id] * (longest - len(i))] for i, _ in chosen])
        labels = torch.tensor([[*t, *[-100] * (longest - len(t))] for _, t in chosen])
        mask = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i, _ in chosen])
        result: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        return result

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    order = Order(len(training), seed=0)
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        mean = loss([training[i] for i in order.samples(step * BATCH, BATCH)])
        mean.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
        optimizer.step()
        losses.append(mean.item())
    with torch.no_grad():
        return losses, norms, loss([samples[i] for i in held_out]).item()


def test_a_plain_loop_of_transformers(tuned: Trained, folder: Path) -> None:
    losses, norms, validation = plain(folder)
    run = tuned(1)
    assert run.losses == pytest.approx(losses, rel=1e-5)
    assert run.grad_norms == pytest.approx(norms, rel=1e-4)
    assert run.validation[-1] == pytest.approx(validation, rel=1e-5)
    assert losses[-1] < losses[0] - 0.5  # the compared runs did learn


def test_layouts(tuned: Trained) -> None:
    one, stages, replicas = tuned(1), tuned(2, "layout.stages=2"), tuned(2, "layout.stages=1")
    assert stages.losses == one.losses
    assert stages.grad_norms == one.grad_norms
    assert stages.layer_files(STEPS) == one.layer_files(STEPS)
    assert replicas.losses == pytest.approx(one.losses, rel=1e-6)
