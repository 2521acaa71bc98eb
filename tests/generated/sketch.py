"""What a number stands for: the layers of a model, the form of its data, its loss and its mistake, if any.

Everything here is drawn from Python's own generator under the number, before torch draws anything. So all
ranks have the same sketch, and so has whoever repeats a case.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from tests.generated import layers_chance as chance
from tests.generated import layers_passing as passing
from tests.generated import layers_plain as plain
from tests.generated import layers_state as state
from tests.generated.carriers import FORMS
from tests.generated.faults import FAULTS

Build = Callable[[], nn.Module]
Made = tuple[str, Build]  # a layer's kind, and what builds its part

TOKENS = 5


@dataclass(frozen=True)
class Sketch:
    """A model and its data.

    Attributes:
        seed: The number.
        kind: The form of a sample: "vector", "sequence" or "image".
        tokens: Whether samples are numbers of tokens.
        width: The size of vectors, or the number of channels.
        time: The longest sequence.
        carrier: What the data's inputs travel in.
        extras: Which of mask and lengths the data has.
        array: Whether samples are NumPy arrays.
        augments: Which generator the data draws from; "none".
        varies: Whether the time depends on the samples.
        samples: Their number.
        layers: The layers between the first and the head, with the carrier of each one's output.
        ends_in: The kind of the head's output: "vector" or "sequence".
        classes: The size of the head's output.
        loss: The loss.
        fault: The mistake, or "none".
        hooks: By layer, the hook that it has: "none" mostly.
        ties: Pairs of layers, by index, whose products share their weight.
    """

    seed: int
    kind: str
    tokens: bool
    width: int
    time: int
    carrier: str
    extras: tuple[str, ...]
    array: bool
    augments: str
    varies: bool
    samples: int
    layers: tuple[tuple[str, Build, str], ...]
    ends_in: str
    classes: int
    loss: str
    fault: str
    hooks: tuple[str, ...]
    ties: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        """Return it in a line."""
        layers = ", ".join(f"{name} -> {form}" for name, _, form in self.layers)
        data = f"{self.kind} {self.carrier} {self.extras} array={self.array} augments={self.augments}"
        return (
            f"{data} varies={self.varies} tokens={self.tokens} [{layers}] ties={self.ties} "
            f"loss={self.loss} fault={self.fault}"
        )


LOSSES = (
    "squares",
    "masked",
    "weighted",
    "learnt",
    "centres",
    "in place",
    "target",
    "noise",
    "entropy",
    "double",
)


HOOKS = ("none",) * 15 + ("before", "after", "backward")


def sketch(seed: int, least: int = 1, without: tuple[int, ...] = ()) -> Sketch:
    """Return what a number stands for.

    Args:
        seed: The number.
        least: The number of layers that the layout needs.
        without: Layers to leave out, to find the one that matters.
    """
    draw = random.Random(f"{seed}/model")
    kind = draw.choices(("sequence", "vector", "image"), (6, 2, 2))[0]
    tokens = kind == "sequence" and draw.random() < 0.3
    layers, ends_in = _layers(draw, seed, kind, max(least - 1, draw.randint(1, 6)))
    if tokens:
        layers.insert(0, ("stem", partial(passing.Stem, _width(seed), TOKENS, draw.random() < 0.3)))
    forms = [draw.choice(FORMS) for _ in layers]
    ties = [i for i, (name, _) in enumerate(layers) if name == "linear" and i not in without]
    extras = tuple(name for name in ("mask", "lengths") if kind == "sequence" and draw.random() < 0.5)
    fault = draw.choice(list(FAULTS)) if draw.random() < 0.03 else "none"
    fault = "none" if tokens and fault.endswith("in data") else fault
    loss = draw.choice(LOSSES)
    return Sketch(
        seed=seed,
        kind=kind,
        tokens=tokens,
        width=_width(seed),
        time=draw.randint(2, 5),
        carrier=draw.choice(FORMS),
        extras=extras,
        array=draw.random() < 0.5,
        augments=draw.choice(("none", "none", "torch", "numpy", "random")),
        varies=kind == "sequence" and draw.random() < 0.4,
        samples=draw.randint(7, 30),
        layers=tuple(
            (*layer, form)
            for i, (layer, form) in enumerate(zip(layers, forms, strict=True))
            if i not in without
        ),
        ends_in=ends_in,
        classes=draw.randint(2, 4),
        loss="squares" if fault in ("mean", "not a scalar") else loss,
        fault=fault,
        hooks=tuple(draw.choice(HOOKS) for i in range(len(layers)) if i not in without),
        ties=((ties[0], ties[-1]),) if len(ties) > 1 and draw.random() < 0.5 and not without else (),
    )


def _width(seed: int) -> int:
    return random.Random(f"{seed}/width").choice((4, 6, 8))


def _layers(draw: random.Random, seed: int, kind: str, number: int) -> tuple[list[Made], str]:
    """Return the layers before the head, and the form of what they return."""
    width, layers, selected, now = _width(seed), [], 0, kind
    while len(layers) < number or selected or now == "image":
        if selected == 1:
            selected = 0
            layers.append(("restore", partial(passing.Restore, width)))
        elif selected:
            selected -= 1
            layers.append(_of(draw, EASY)(draw, width, now))
        elif now != "image" and draw.random() < 0.07:
            selected = draw.randint(1, 3)
            layers.append(("select", partial(passing.Select, width)))
        elif now != "vector" and draw.random() < (0.08 if len(layers) < number else 1.0):
            now = "vector"
            layers.append(("pool", partial(passing.Pool, width, draw.choice(("mean", "last")))))
        else:
            layers.append(
                _of(draw, {"vector": VECTOR, "sequence": SEQUENCE, "image": IMAGE}[now])(draw, width, now)
            )
    return layers, now


Maker = Callable[[random.Random, int, str], Made]


def _of(draw: random.Random, makers: dict[str, Maker]) -> Maker:
    return makers[draw.choice(list(makers))]


def _with(name: str, part: Callable[..., nn.Module], **options: tuple[object, ...]) -> Maker:
    """Return a maker of a part, each of whose options is one of several values."""

    def make(draw: random.Random, width: int, kind: str) -> Made:
        chosen = {key: draw.choice(values) for key, values in options.items()}
        return name, partial(part, width, **chosen)

    return make


def _rarely(maker: Maker) -> Maker:
    """Return a maker that mostly makes a plain product."""

    def make(draw: random.Random, width: int, kind: str) -> Made:
        often = draw.random() < 0.7
        return ("linear", partial(plain.Linear, width, "tanh")) if often else maker(draw, width, kind)

    return make


def _batch_norm(draw: random.Random, width: int, kind: str) -> Made:
    momentum = draw.choice((None, 0.0, 0.1))
    fixed = draw.choice(("no", "no", "plain", "weights", "mode", "both"))
    return "batch norm", partial(state.BatchNorm, width, kind == "image", momentum, fixed)


def _convolution(draw: random.Random, width: int, kind: str) -> Made:
    activation = draw.choice(list(plain.ACTIVATIONS))
    return "convolution", partial(plain.Convolution, width, 2 if kind == "image" else 1, activation)


BOTH = (False, True)
EASY: dict[str, Maker] = {
    "linear": _with("linear", plain.Linear, activation=tuple(plain.ACTIVATIONS), skip=BOTH, bias=BOTH),
    "norm": _with("norm", plain.Norm, kind=("layer", "plain", "rms")),
    "dropped": _with(
        "dropped",
        chance.Dropped,
        kind=(
            "module",
            "in place",
            "alpha",
            "rrelu",
            "rrelu in place",
            "functional",
            "always",
            "noise",
            "bernoulli",
        ),
    ),
    "in place": _with(
        "in place",
        chance.InPlace,
        kind=("add", "multiply", "relu", "masked", "column", "view", "evaluating", "mask", "skip"),
    ),
    "typed": _with("typed", plain.Typed, kind=("bfloat16", "float64", "complex64")),
}
VECTOR: dict[str, Maker] = EASY | {
    "drawn": _with("drawn", plain.Drawn, source=("numpy", "random", "torch")),
    "twice": _with("twice", plain.Twice, kind=("module", "weight", "product")),
    "frozen": _with("frozen", plain.Frozen, every=BOTH),
    "free": _with("free", plain.Free, kind=("strided", "expanded", "view", "same", "tanh")),
    "mean": _with("mean", state.MovingMean, how=("in place", "replaced", "late", "fleeting", "shared")),
    "counter": _with("counter", state.Counter, evaluating=BOTH),
    "codebook": _with("codebook", state.Codebook, size=(2, 4)),
    "normalised": _with(
        "normalised",
        state.Normalised,
        kind=("spectral", "weight", "orthogonal", "old spectral", "old weight"),
    ),
    "hooked": _with(
        "hooked",
        state.Hooked,
        kind=("forward", "before", "backward", "weight", "accumulated", "tensor"),
    ),
    "cached": _with("cached", state.Cached),
    "elsewhere": _with("elsewhere", chance.Elsewhere, source=("numpy", "permutation", "depth", "random")),
    "gumbel": _with("gumbel", chance.Dropped, kind=("gumbel",)),
    "table": _with("table", chance.Table, sparse=BOTH),
    "bounded": _rarely(_with("bounded", chance.Bounded)),
    "clamped": _rarely(_with("clamped", chance.Clamped)),
    "pass": _with(
        "pass",
        passing.Pass,
        what=(
            *(
                "skip",
                "skip",
                "same",
                "spare",
                "nothing",
                "number",
                "fraction",
                "word",
                "flag",
                "type",
                "constant",
            ),
            *("whole", "many", "complex", "double", "empty", "scalar", "view", "first"),
        ),
    ),
    "use": _with("use", passing.Use, drop=BOTH),
    "unused": _with("unused", passing.Unused, kind=("detached", "constant", "zero")),
}
SEQUENCE: dict[str, Maker] = VECTOR | {
    "recurrent": _with(
        "recurrent", plain.Recurrent, kind=("lstm", "gru"), packed=BOTH, layers=(1, 2), dropout=(0.0, 0.3)
    ),
    "packed": _with("packed", plain.Recurrent, kind=("lstm", "gru"), packed=(True,)),
    "attention": _with("attention", plain.Attention, dropout=(0.0, 0.2), fused=BOTH),
    "convolution": _convolution,
    "batch norm": _batch_norm,
    "features": _with("features", chance.Dropped, kind=("features",)),
}
IMAGE: dict[str, Maker] = {
    "convolution": _convolution,
    "convolution again": _convolution,
    "batch norm": _batch_norm,
    "dropped": EASY["dropped"],
    "free": VECTOR["free"],
}
