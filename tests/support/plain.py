"""A GPT trained by a plain PyTorch loop, without micro-batches, stages or replicas."""

import torch
import torch.nn.functional as F
from torch import nn

from trainer.data.order import Order
from trainer.models.gpt import Block, Embedding, Head
from trainer.seeds import derive

STEPS = 5
BATCH = 15
CONTEXT = 32
HELD_OUT = 0.05
SPLIT = [
    "model.blocks=3",
    "model.dropout=0.0",
    f"batch.global_size={BATCH}",
    f"train.steps={STEPS}",
    "optimizer.lr=0.01",
    "optimizer.weight_decay=0.1",
    "optimizer.clip=1.0",
    "optimizer.lr_schedule.name=constant",
    "optimizer.lr_schedule.warmup=0",
    "eval.samples=1",
    "generate.tokens=0",
]


def network() -> nn.Sequential:
    """Return the GPT of `SPLIT` with its initial weights, the head tied to the embedding."""
    block = {"width": 32, "heads": 2, "blocks": 3, "dropout": 0.0, "rotary": False}
    build = {
        "embedding": lambda: Embedding(vocabulary=256, width=32, context=CONTEXT, dropout=0.0),
        **{f"block.{i}": lambda: Block(**block) for i in range(3)},
        "head": lambda: Head(vocabulary=256, width=32),
    }
    layers = []
    for name, make in build.items():
        torch.manual_seed(derive(0, "weights", name))
        layers.append(make())
    layers[-1].linear.weight = layers[0].tokens.weight
    return nn.Sequential(*layers)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)


def plain(text: bytes, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[float], list[float]]:
    """Return the losses and the norms of a plain loop."""
    tokens = torch.tensor(list(text[: len(text) - int(len(text) * HELD_OUT)]))
    starts = torch.arange(0, len(tokens) - CONTEXT, CONTEXT)
    windows = torch.stack([tokens[start : start + CONTEXT + 1] for start in starts])
    order = Order(len(windows), seed=0)
    losses, norms = [], []
    for step in range(STEPS):
        batch = windows[order.samples(step * BATCH, BATCH)]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms
