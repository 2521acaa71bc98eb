"""Whatever an optimizer keeps, wherever it does, resumes to the last bit, or the first step refuses it."""

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.alone import Alone
from tests.support.thread_ranks import ThreadRank, on_ranks
from trainer.checkpoint.checkpoint import Checkpoint
from trainer.checkpoint.optimizer_state import shared_values
from trainer.checkpoint.resumable import check_resumable
from trainer.checkpoint.save import save_checkpoint
from trainer.checkpoint.schema import Progress
from trainer.config.schema import (
    AdamWConfig,
    CustomOptimizerConfig,
    GroupConfig,
    OptimizerConfig,
    SGDConfig,
)
from trainer.errors import UserError
from trainer.models.model import Layer
from trainer.optim.build import build_optimizer
from trainer.optim.modes import evaluating
from trainer.pipeline.build import build_layer
from trainer.pipeline.layer import BuiltLayer

CPU = torch.device("cpu")
MODEL = [Layer("first", lambda: nn.Linear(3, 4)), Layer("last", lambda: nn.Linear(4, 2))]
Change = Callable[["Toy", dict[str, Any], nn.Parameter], float]


class Toy(torch.optim.Optimizer):
    """Steps against the gradient, by a factor that depends on what `remember` keeps."""

    remember: Change = staticmethod(lambda toy, group, parameter: 1.0)

    def __init__(self, groups: Any, lr: float, **defaults: Any) -> None:
        super().__init__(groups, {"lr": lr, **defaults})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.before()
        for group in self.param_groups:
            for parameter in group["params"]:
                factor = type(self).remember(self, group, parameter)
                parameter.sub_(parameter.grad, alpha=group["lr"] * factor)

    def before(self) -> None:
        """Called once a step."""
        for group in self.param_groups:
            group["first"] = group["params"][0]
        for group in self.param_groups:
            del group["first"]


def optimizer_that(remember: Change, before: Callable[[Any], None] = lambda _: None) -> type[Toy]:
    return type("Remembering", (Toy,), {"remember": staticmethod(remember), "before": before})


def in_lists(toy: Toy, group: dict[str, Any], parameter: nn.Parameter) -> float:
    last = toy.state[parameter].setdefault("last", [])
    last.append(parameter.grad.clone())
    del last[:-3]
    return len(last)


def in_nested(toy: Toy, group: dict[str, Any], parameter: nn.Parameter) -> float:
    state = toy.state[parameter]
    if not state:
        state["pair"] = (0, torch.zeros(()))
        state["history"] = deque(maxlen=2)
        state["by_name"] = {"norms": [], 3: torch.zeros_like(parameter)}
        state["norm"] = np.float32(0)
        state["alias"] = state["by_name"][3]
    count, mean = state["pair"]
    state["pair"] = (count + 1, mean.lerp(parameter.grad.norm(), 0.5))
    state["history"].append(float(parameter.grad.sum()))
    state["by_name"]["norms"].append(np.float64(parameter.grad.norm()))
    state["alias"].add_(parameter.grad)
    state["norm"] = np.float32(state["by_name"][3].norm())
    return count + float(state["pair"][1]) + sum(state["history"]) + float(state["norm"])


def in_group(toy: Toy, group: dict[str, Any], parameter: nn.Parameter) -> float:
    return group["k"] + float(group["sum"]) + group["pair"][0]


def count_in_group(toy: Toy) -> None:
    for group in toy.param_groups:
        group["k"] = group.get("k", 0) + 1
        group["sum"] = group.get("sum", torch.zeros(())) + 0.1
        group["pair"] = (group["k"] * 0.1, "text")


def count_in_attribute(toy: Any) -> None:
    toy.count = getattr(toy, "count", 0) + 1
    toy.state["moments"] = toy.state["moments"] or {"seen": deque([toy.count], maxlen=3)}
    toy.state["moments"]["seen"].append(toy.count)


def by_attribute(toy: Any, group: dict[str, Any], parameter: nn.Parameter) -> float:
    return toy.count + sum(toy.state["moments"]["seen"])


def change_a_default(toy: Toy) -> None:
    for group in toy.param_groups:
        group["betas"] = (group["betas"][0] * 0.9, group["betas"][1])


KEEPING = {
    "lists": optimizer_that(in_lists),
    "nested": optimizer_that(in_nested),
    "groups": optimizer_that(in_group, count_in_group),
    "attributes and texts": optimizer_that(by_attribute, count_in_attribute),
}


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CustomOptimizerConfig]:
    """Return a function that makes a configuration whose target is an optimizer."""
    module = SimpleNamespace()
    monkeypatch.setitem(__import__("sys").modules, "toy_module", module)

    def config(optimizer: Any, **values: Any) -> CustomOptimizerConfig:
        module.made = optimizer
        return CustomOptimizerConfig(name="custom", target="toy_module:made", lr=0.05, **values)

    return config


def layers_of(seed: int, chosen: range = range(2)) -> list[BuiltLayer]:
    return [build_layer(MODEL, i, seed, CPU) for i in chosen]


def train(layers: list[BuiltLayer], optimizer: Any, steps: range) -> None:
    for step in steps:
        for layer in layers:
            for number, parameter in enumerate(layer.module.parameters()):
                values = torch.arange(parameter.numel()).reshape(parameter.shape) + number + step
                parameter.grad = values.float().sin()
        optimizer.step()


def weights(layers: list[BuiltLayer]) -> list[list[float]]:
    return [parameter.flatten().tolist() for layer in layers for parameter in layer.module.parameters()]


def progress(step: int) -> Progress:
    return Progress(step, step, 1, "custom", {})


Target = Callable[..., CustomOptimizerConfig]


@pytest.mark.parametrize("kind", KEEPING)
@pytest.mark.parametrize("groups", [[], [GroupConfig("*/bias", lr=0.01)]], ids=["one group", "two groups"])
def test_resumed_to_the_last_bit(
    kind: str, groups: list[GroupConfig], target: Target, tmp_path: Path
) -> None:
    config = target(KEEPING[kind], groups=groups)
    layers = layers_of(1)
    optimizer = build_optimizer(config, layers)
    train(layers, optimizer, range(3))
    check_resumable(layers, optimizer, {}, Alone())
    path = save_checkpoint(tmp_path, layers, optimizer, progress(3), Alone())
    train(layers, optimizer, range(3, 6))

    resumed = layers_of(2)
    again = build_optimizer(config, resumed)
    Checkpoint(path).restore(resumed, again, "custom")
    train(resumed, again, range(3, 6))
    assert weights(resumed) == weights(layers)


@pytest.mark.parametrize("kind", KEEPING)
def test_resumed_as_other_stages(kind: str, target: Target, tmp_path: Path) -> None:
    """Each layer on a rank of its own."""
    config = target(KEEPING[kind])
    layers = layers_of(1)
    optimizer = build_optimizer(config, layers)
    train(layers, optimizer, range(3))
    path = save_checkpoint(tmp_path, layers, optimizer, progress(3), Alone())
    train(layers, optimizer, range(3, 6))
    for index in range(2):
        part = layers_of(2, range(index, index + 1))
        again = build_optimizer(config, part)
        Checkpoint(path).restore(part, again, "custom")
        train(part, again, range(3, 6))
        assert weights(part) == weights(layers[index : index + 1])


def test_a_setting_may_be_another_when_resumed_but_not_what_steps_changed(
    target: Target, tmp_path: Path
) -> None:
    def build(optimizer: type[Toy], margin: float) -> tuple[list[BuiltLayer], Any]:
        layers = layers_of(1)
        config = target(optimizer, options={"betas": [0.9, 0.99], "margin": margin})
        return layers, build_optimizer(config, layers)

    changing = optimizer_that(lambda toy, group, parameter: group["betas"][0], change_a_default)
    layers, optimizer = build(changing, 1.0)
    train(layers, optimizer, range(2))
    path = save_checkpoint(tmp_path, layers, optimizer, progress(2), Alone())
    resumed, again = build(changing, 2.0)
    Checkpoint(path).restore(resumed, again, "custom")
    (group,) = again.param_groups
    assert group["betas"] == optimizer.param_groups[0]["betas"] == (0.9 * 0.9 * 0.9, 0.99)
    assert group["margin"] == 2.0


def share_a_tensor(toy: Any, group: dict[str, Any], parameter: nn.Parameter) -> float:
    toy.shared = getattr(toy, "shared", None)
    toy.state[parameter]["step"] = toy.state[toy.param_groups[0]["params"][0]].get("step", torch.zeros(()))
    return 1.0


def view_the_weight(toy: Toy, group: dict[str, Any], parameter: nn.Parameter) -> float:
    toy.state[parameter]["weight"] = parameter.detach()[:1]
    return 1.0


def draw(toy: Any) -> None:
    toy.generator = torch.Generator()


def an_object(toy: Toy, group: dict[str, Any], parameter: nn.Parameter) -> float:
    toy.state[parameter]["helper"] = SimpleNamespace(sum=1)
    return 1.0


def an_odd_key(toy: Any) -> None:
    toy.state[7] = {"seen": 1}


def inner(toy: Any) -> None:
    toy.inner = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    toy.inner.state["seen"] = {"x": 1}


class Schedule:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return 1 / self.calls


def counting() -> Callable[[], float]:
    schedule = Schedule()

    def call() -> float:
        return schedule()

    return call


class Scheduled(Toy):
    """Has a counter in an object, in a function, or in an object among its defaults."""

    def __init__(self, groups: Any, lr: float, kind: str) -> None:
        super().__init__(groups, lr, **({"schedule": Schedule()} if kind == "default" else {}))
        if kind != "default":
            self.schedule = Schedule() if kind == "object" else counting()

    def before(self) -> None:
        getattr(self, "schedule", self.param_groups[0].get("schedule"))()


@pytest.mark.parametrize("kind", ["object", "function", "default"])
def test_a_counter_in_an_object_or_a_function_is_noticed(kind: str, target: Target) -> None:
    layers = layers_of(1)
    built = build_optimizer(target(Scheduled, options={"kind": kind}), layers)
    train(layers, built, range(1))
    with pytest.raises(UserError, match=r"\['schedule'\] is of type"):
        check_resumable(layers, built, {}, Alone())


def test_functions_and_objects_that_do_not_change_are_fine(target: Target) -> None:
    layers = layers_of(1)
    built: Any = build_optimizer(target(Toy, options={"schedule": Schedule()}), layers)
    built.helper = lambda: built
    built.helper.optimizer = built
    train(layers, built, range(1))
    check_resumable(layers, built, {}, Alone())


def one(toy: Toy, group: dict[str, Any], parameter: nn.Parameter) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (optimizer_that(share_a_tensor), "same tensor as that of another parameter"),
        (optimizer_that(view_the_weight), r"(first|last)/.* and .* share memory"),
        (optimizer_that(one, draw), "generator of its own, 'generator'"),
        (optimizer_that(an_object), r"first/weight\['helper'\] is of type types.SimpleNamespace"),
        (optimizer_that(one, an_odd_key), "has the key '7', which is no parameter"),
        (optimizer_that(one, inner), "the optimizer 'inner' inside it has state of its own"),
    ],
)
def test_refused_after_the_first_step(optimizer: type[Toy], words: str, target: Target) -> None:
    layers = layers_of(1)
    built = build_optimizer(target(optimizer), layers)
    train(layers, built, range(1))
    with pytest.raises(UserError, match=words) as caught:
        check_resumable(layers, built, {}, Alone())
    assert "cannot be saved in a checkpoint" in str(caught.value)


def sum_of_gradients(toy: Any) -> None:
    for group in toy.param_groups:
        group["sum"] = sum(float(parameter.grad.sum()) for parameter in group["params"])


def test_values_that_differ_between_ranks_are_refused_by_all(target: Target) -> None:
    """A sum over a rank's parameters depends on which the rank has."""
    config = target(optimizer_that(one, sum_of_gradients))

    def rank(world: ThreadRank) -> None:
        layers = layers_of(1, range(world.rank, world.rank + 1))
        optimizer = build_optimizer(config, layers)
        train(layers, optimizer, range(1))
        check_resumable(layers, optimizer, {}, world)

    errors = on_ranks(rank)
    assert {type(error) for error in errors} == {UserError}
    assert all("keeps 'sum' in its parameter groups" in str(error) for error in errors)


def test_a_rank_without_an_optimizer_agrees(target: Target) -> None:
    def rank(world: ThreadRank) -> None:
        layers = layers_of(1)
        optimizer = build_optimizer(target(KEEPING["groups"]), layers) if world.rank else None
        if optimizer is not None:
            train(layers, optimizer, range(1))
        check_resumable(layers, optimizer, {}, world)

    assert on_ranks(rank) == [None, None]


class SharpnessAware(Toy):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is not None
        closure()


def made_by_a_function(groups: Any, lr: float) -> torch.optim.Optimizer:
    return SharpnessAware(groups, lr)


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, SharpnessAware, made_by_a_function])
def test_an_optimizer_that_needs_a_closure_is_refused_at_the_start(optimizer: Any, target: Target) -> None:
    with pytest.raises(UserError, match=r"optimizer\.target=toy_module:made .* through a closure"):
        build_optimizer(target(optimizer), layers_of(1))


@pytest.mark.parametrize(
    ("optimizer", "options", "words"),
    [
        (Toy, {"lr": 1.0}, "multiple values|options do not fit"),
        (torch.optim.SGD, {"momentum": -1.0}, "does not take these parameters and options: Invalid momentum"),
        (lambda groups, lr: object(), {}, "returned object: it must return a torch.optim.Optimizer"),
    ],
)
def test_an_optimizer_that_cannot_be_built(optimizer: Any, options: Any, words: str, target: Target) -> None:
    with pytest.raises(UserError, match=words):
        build_optimizer(target(optimizer, options=options), layers_of(1))


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free descent as published (Defazio et al., 2024): trains y, evaluates x."""

    def __init__(self, groups: Any, lr: float, beta: float = 0.9) -> None:
        super().__init__(groups, {"lr": lr, "beta": beta, "k": 0, "train_mode": False})

    @torch.no_grad()
    def _switch(self, mode: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] == mode:
                continue
            weight = 1 - group["beta"] if mode else 1 - 1 / group["beta"]
            for parameter in group["params"]:
                if "z" in self.state[parameter]:
                    parameter.lerp_(self.state[parameter]["z"], weight)
            group["train_mode"] = mode

    def train(self) -> None:
        self._switch(True)

    def eval(self) -> None:
        self._switch(False)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("not in train mode")
            group["k"] += 1
            for y in group["params"]:
                z = self.state[y].setdefault("z", y.clone())
                y.lerp_(z, 1 / group["k"])
                y.sub_(y.grad, alpha=group["lr"] * (group["beta"] * (1 - 1 / group["k"]) - 1))
                z.sub_(y.grad, alpha=group["lr"])


def test_an_optimizer_with_modes_evaluates_other_weights_and_resumes(target: Target, tmp_path: Path) -> None:
    config = target(ScheduleFree)
    layers = layers_of(1)
    optimizer = build_optimizer(config, layers)
    train(layers, optimizer, range(3))
    training = weights(layers)
    with evaluating(optimizer):
        evaluated = weights(layers)
    assert evaluated != training == weights(layers)
    path = save_checkpoint(tmp_path, layers, optimizer, progress(3), Alone())
    assert weights(layers) == training
    train(layers, optimizer, range(3, 6))

    resumed = layers_of(2)
    again = build_optimizer(config, resumed)
    Checkpoint(path).restore(resumed, again, "custom")
    train(resumed, again, range(3, 6))
    assert weights(resumed) == weights(layers)
    warm = layers_of(2)
    Checkpoint(path).restore_weights(warm, ["first", "last"])
    assert weights(warm) == evaluated


def test_an_optimizer_with_modes_is_not_sharded(target: Target) -> None:
    with pytest.raises(UserError, match=r"optimizer\.sharded=true does not work with ScheduleFree"):
        build_optimizer(target(ScheduleFree, sharded=True), layers_of(1))


def test_another_optimizer_by_the_same_name(target: Target, tmp_path: Path) -> None:
    layers = layers_of(1)
    optimizer = build_optimizer(target(KEEPING["lists"]), layers)
    train(layers, optimizer, range(1))
    path = save_checkpoint(tmp_path, layers, optimizer, progress(1), Alone())
    again = build_optimizer(target(torch.optim.Adam), layers)
    with pytest.raises(UserError, match="no 'step' in the checkpoint, which this run's optimizer needs"):
        Checkpoint(path).restore(layers, again, "custom")


def test_an_optimizer_with_a_lock(target: Target, tmp_path: Path) -> None:
    """It cannot be copied, and the trial step must not count."""

    class Locked(KEEPING["groups"]):  # type: ignore[misc]
        def __init__(self, groups: Any, lr: float) -> None:
            super().__init__(groups, lr, lock=threading.Lock())
            self.lock = threading.Lock()

    layers = layers_of(1)
    optimizer = build_optimizer(target(Locked), layers)
    train(layers, optimizer, range(2))
    path = save_checkpoint(tmp_path, layers, optimizer, progress(2), Alone())
    again: Any = build_optimizer(target(Locked), layers)
    Checkpoint(path).restore(layers, again, "custom")
    assert again.param_groups[0]["k"] == 2


def test_momentum_may_be_new(target: Target, tmp_path: Path) -> None:
    layers = layers_of(1)
    optimizer = build_optimizer(target(torch.optim.SGD), layers)
    train(layers, optimizer, range(1))
    path = save_checkpoint(tmp_path, layers, optimizer, progress(1), Alone())
    again = build_optimizer(target(torch.optim.SGD, options={"momentum": 0.9}), layers)
    Checkpoint(path).restore(layers, again, "custom")
    train(layers, again, range(1, 3))


@pytest.mark.parametrize("config", [AdamWConfig(), SGDConfig(momentum=0.9), SGDConfig()])
def test_the_optimizers_of_a_configuration_keep_all_in_the_state(config: OptimizerConfig) -> None:
    """Whatever torch's own note about themselves (whether a fused kernel was checked, say) is no state."""
    layers = layers_of(1)
    optimizer = build_optimizer(config, layers)
    assert optimizer is not None
    train(layers, optimizer, range(1))
    assert not any(shared_values(optimizer).groups.values())
    assert not shared_values(optimizer).attributes
