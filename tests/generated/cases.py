"""The configuration of a number on some ranks: what `python -m trainer.verify` gets on its command line."""

import random
from dataclasses import dataclass
from typing import Any

from tests.generated.faults import FAULTS
from tests.generated.sketch import Sketch, sketch

Overrides = dict[str, Any]

BASE = [
    "experiment=none",
    "model=custom",
    "model.target=tests.generated.models:model",
    "data=custom",
    "data.target=tests.generated.data:data",
    "threads=1",
    "device=cpu",
    "progress=off",
]
OWN = "tests.generated.optimizers:"


@dataclass(frozen=True)
class Case:
    """A number on some ranks.

    Attributes:
        seed: The number.
        ranks: The number of ranks.
        replicas: Into how many replicas they are divided.
        drawn: The model and its data.
        overrides: The configuration, by dotted key.
        words: What the message must contain, where the model has a mistake; else empty.
    """

    seed: int
    ranks: int
    replicas: int
    drawn: Sketch
    overrides: Overrides
    words: tuple[str, ...]

    @property
    def may_be_refused(self) -> bool:
        """Return whether some schedules cannot run it, and say so."""
        return any(kind == "clamped" for kind, _, _ in self.drawn.layers)

    def command(self) -> str:
        """Return the command that repeats it."""
        arguments = [*BASE, *(text for key, value in self.overrides.items() for text in _texts(key, value))]
        launcher = f"horovodrun -np {self.ranks} " if self.ranks > 1 else ""
        return f"{launcher}python -m trainer.verify " + " ".join(f"'{argument}'" for argument in arguments)


def case(seed: int, ranks: int, replicas: int, without: tuple[int, ...] = ()) -> Case:
    """Return the case of a number.

    Args:
        seed: The number.
        ranks: The number of ranks.
        replicas: How many replicas they hold; a divisor of the ranks.
        without: Layers of the model to leave out.
    """
    draw = random.Random(f"{seed}/case/{ranks}/{replicas}")
    layout, stages = _layout(draw, ranks // replicas)
    drawn = sketch(seed, stages, without)
    overrides: Overrides = layout | {
        "model.options": _options(drawn, stages, without),
        "data.options": _options(drawn, stages, without) | {"validation": draw.choice((0, 1, 3, 5))},
        "memory.recompute": draw.choice(("none", "selective", "full", "full")),
        "precision": draw.choices(("fp32", "bf16", "fp16"), (14, 5, 1))[0],
        **_batch(draw, replicas),
        **_optimizer(draw),
        **_rarer(draw, replicas),
        "train.steps": 3,
        "train.seed": draw.randint(0, 1000),
        "eval.samples": 0,
        "verify.steps": draw.choice((2, 2, 2, 3)),
    }
    layers = stages if drawn.fault == "none" else max(stages, 1)
    if draw.random() < 0.4 and layers > 1:
        overrides["layout.boundaries"] = _boundaries(draw, drawn, stages)
    words = _with_fault(drawn, overrides, replicas)
    if replicas > 1 and not words and any(kind in ("bounded", "clamped") for kind, _, _ in drawn.layers):
        words = ("changes its weights in its forward",)
    return Case(seed, ranks, replicas, drawn, overrides, words)


def _options(drawn: Sketch, stages: int, without: tuple[int, ...]) -> Overrides:
    options: Overrides = {"seed": drawn.seed, "least": stages}
    return options | ({"without": list(without)} if without else {})


def _layout(draw: random.Random, ranks: int) -> tuple[Overrides, int]:
    """Return the layout of a group of ranks, and its number of stages."""
    devices = draw.choice((1, 1, 2))
    workers = ranks * devices
    names = ("gpipe", "1f1b", "interleaved", "zb_h1", "zb_v") if workers < 4 else ("gpipe", "1f1b", "zb_h1")
    schedule = draw.choice(names)
    overrides: Overrides = {
        "layout.stages": workers,
        "layout.devices_per_rank": devices,
        "schedule": schedule,
    }
    each = {"interleaved": 2, "zb_v": 2}.get(schedule, 1)
    if schedule == "interleaved" and draw.random() < 0.3:
        each = overrides["layout.virtual_stages"] = 3 if workers < 3 else 2
    return overrides, workers * each


def _boundaries(draw: random.Random, drawn: Sketch, stages: int) -> list[int]:
    """Return the first layer of each stage but the first."""
    return sorted(draw.sample(range(1, len(drawn.layers) + 1), stages - 1))


def _batch(draw: random.Random, replicas: int) -> Overrides:
    micro = draw.randint(1, 4)
    batches = draw.randint(max(1, replicas), 6)
    short = draw.randint(0, micro - 1) if draw.random() < 0.4 else 0
    return {"batch.micro_size": micro, "batch.global_size": max(1, micro * batches - short)}


def _optimizer(draw: random.Random) -> Overrides:
    name = draw.choice(("sgd", "adamw", "rmsprop", "nadam", "adagrad", "own"))
    overrides: Overrides = {"optimizer": name if name in ("sgd", "adamw") else "custom"}
    if overrides["optimizer"] == "custom":
        overrides["optimizer.target"] = OWN + name
    overrides["optimizer.lr"] = draw.choice((0.001, 0.02))
    if name == "sgd" and draw.random() < 0.6:
        overrides["optimizer.momentum"] = 0.9
        overrides["optimizer.nesterov"] = draw.random() < 0.5
    overrides["optimizer.clip"] = draw.choice((None, 0.01, 1.0, 100.0))
    overrides["optimizer.weight_decay"] = draw.choice((0.0, 0.1)) if name != "own" else 0.0
    overrides["optimizer.sharded"] = draw.random() < 0.25
    if draw.random() < 0.25:
        overrides["optimizer.groups"] = [
            {"match": "head/*.bias", "lr": 0.1},
            {"match": "head", "weight_decay": 0.3},
        ]
    if draw.random() < 0.25:
        overrides["optimizer.lr_schedule.name"] = draw.choice(("cosine", "linear"))
        overrides["optimizer.lr_schedule.warmup"] = 2
    return overrides


def _rarer(draw: random.Random, replicas: int) -> Overrides:
    overrides: Overrides = {}
    if draw.random() < 0.05:
        overrides["train.freeze"] = ["head/*.bias"]
    if replicas > 1 and draw.random() < 0.1:
        overrides["averaging.compression"] = "fp16"
    elif replicas > 1 and replicas & (replicas - 1) == 0 and draw.random() < 0.07:
        overrides["averaging.op"] = "adasum"
    return overrides


def _with_fault(drawn: Sketch, overrides: Overrides, replicas: int) -> tuple[str, ...]:
    """Let the mistake of a sketch show, if it can on these replicas; return what the message must contain."""
    if drawn.fault == "none":
        return ()
    fault = FAULTS[drawn.fault]
    overrides["precision"] = "fp32"
    if fault.recomputes:
        overrides["memory.recompute"] = "full"
    if drawn.fault == "mean":
        overrides["batch.micro_size"], overrides["batch.global_size"] = 4, 4 * replicas
    return fault.words if replicas >= fault.replicas else ("anything",)


def _texts(key: str, value: Any) -> list[str]:
    """Return the arguments that set a key."""
    if key.endswith(".options"):
        return [f"+{key}.{name}={_text(each)}" for name, each in value.items()]
    return [f"{key}={_text(value)}"]


def _text(value: Any) -> str:
    """Return a value as Hydra reads it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f'"{value}"' if isinstance(value, str) and "*" in value else str(value)
