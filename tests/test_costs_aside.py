"""Costing layers leaves no trace in this process, and survives what custom code does."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.models import NoLoss
from trainer.errors import UserError
from trainer.models.model import Layer, Model, Tie
from trainer.models.names import Parameters
from trainer.plan.costs import LayerCost, layer_costs, notes
from trainer.plan.layer_cost import FLOPS_PER_BYTE

X = torch.ones(4, 6)
FLOATS = torch.ones(4, 6, requires_grad=True)
LINEAR = partial(nn.Linear, 6, 6)


def costs(*builds: Callable[[], nn.Module], inputs: Any = X, **options: Any) -> list[LayerCost]:
    layers = tuple(Layer(f"layer{i}", build) for i, build in enumerate(builds))
    return layer_costs(Model(layers, NoLoss()), inputs, **options)


class Calls(nn.Module):
    """A linear layer after any function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(self.function(x))
        return output


@lru_cache
def cached(width: int) -> Tensor:
    return torch.arange(width) * 0.5


GLOBAL: dict[str, Tensor] = {}


class Traces(nn.Module):
    """Keeps tensors wherever a module can."""

    seen: Tensor | None = None
    own_cache: dict[int, Tensor] = {}  # noqa: RUF012  (shared by all, on purpose)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        Traces.seen = torch.zeros(width)
        self.own_cache[width] = GLOBAL["table"] = torch.ones(width)
        Traces.forward.__dict__["kept"] = torch.ones(width)
        random.random()
        np.random.rand()
        return x + cached(width) + GLOBAL["table"] + torch.rand(width)


def test_no_cache_attribute_global_or_generator_changes() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    assert costs(Traces, LINEAR)[0].warning is None
    assert cached.cache_info().currsize == 0
    assert (Traces.seen, Traces.own_cache, GLOBAL) == (None, {}, {})
    assert "kept" not in Traces.forward.__dict__
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert random.getstate() == before[2]


def test_an_existing_network_keeps_its_values_and_is_costed_as_a_new_one() -> None:
    network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6))
    network[0].table = torch.arange(16.0)  # type: ignore[assignment]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen = costs(*[lambda part=part: part for part in network])
    assert seen == costs(partial(nn.Linear, 6, 16), nn.Tanh, partial(nn.Linear, 16, 6))
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None and not parameter.is_meta for parameter in network.parameters())


def test_parameters_are_listed_without_touching_an_existing_module() -> None:
    module = nn.Linear(6, 6)
    listed = Parameters(Model((Layer("only", lambda: module),), NoLoss()))
    assert list(listed.of(listed._layers[0])) == ["weight", "bias"]
    assert not module.weight.is_meta


def test_layers_that_share_a_parameter_must_declare_it() -> None:
    module, other = nn.Linear(6, 6), nn.Linear(6, 6)
    other.weight = module.weight
    build = lambda: module  # noqa: E731  (one `build` for two layers)
    for second in (build, lambda: module, lambda: other):
        with pytest.raises(UserError, match="layers 'layer0' and 'layer2' share a parameter"):
            costs(build, nn.Tanh, second)
    tied = Layer("second", lambda: other, ties=(Tie("weight", "first", "weight"),))
    assert len(layer_costs(Model((Layer("first", lambda: module), tied), NoLoss()), X)) == 2
    tanh = nn.Tanh()
    assert len(costs(lambda: tanh, LINEAR, lambda: tanh)) == 3  # nothing to share
    module.requires_grad_(False)
    assert len(costs(lambda: module, lambda: module)) == 2


def test_every_build_runs_once(tmp_path: Path) -> None:
    def build() -> nn.Module:
        with (tmp_path / "builds").open("a") as file:
            file.write(".")
        return nn.Linear(6, 6)

    layer_costs(Model(tuple(Layer(f"layer{i}", build) for i in range(4)), NoLoss()), FLOATS, torch.bfloat16)
    assert (tmp_path / "builds").read_text() == "."


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.add_(1),
        F.relu_,
        lambda x: F.relu(x, inplace=True),
        lambda x: x.data.mul_(2) + x,
        lambda x: torch.add(x.detach(), 1, out=x.detach()) + x,
        lambda x: x.__setitem__((slice(None), 1), 0.0) or x,
        lambda x: x.view(-1).fill_(1).view(4, 6),
    ],
)
def test_layers_that_write_into_their_inputs_are_counted_and_reported(
    function: Callable[[Tensor], Tensor],
) -> None:
    layer, plain = costs(partial(Calls, function), partial(Calls, lambda x: x + 1), inputs=FLOATS)
    assert (layer.writes_inputs, plain.writes_inputs) == (True, False)
    assert layer.flops_forward == 2 * 4 * 36
    assert (layer.dynamic, plain.dynamic) == (False, False)


def test_a_loss_that_writes_into_the_outputs_is_reported() -> None:
    class Writes(NoLoss):
        def __call__(self, output: Any, target: Any) -> Tensor:
            output[:, 0] = 0.0
            total: Tensor = ((output - target) ** 2).sum()
            return total

    class Reads(Writes):
        def __call__(self, output: Any, target: Any) -> Tensor:
            return super().__call__(output.clone(), target)

    layers = Layer("first", LINEAR), Layer("last", LINEAR)
    for loss, writes in ((Writes(), True), (Reads(), False)):
        first, last = layer_costs(Model(layers, loss), X, targets=X)
        assert (first.loss_writes, last.loss_writes) == (False, writes)
        assert sum(last.saved_bytes.values()) > sum(first.saved_bytes.values())


@pytest.mark.parametrize(
    ("function", "dynamic"),
    [
        (lambda x: x[x[:, 0] > 0], True),
        (lambda x: x[(x[:, 0] > 0).nonzero()[:, 0]], True),
        (lambda x: x[: int(x.abs().max()) + 1], True),
        (lambda x: x[: len(x.sum(1).tolist())], True),
        (lambda x: x[: x.detach().numpy().shape[0]], True),
        (lambda x: x[torch.tensor([1, 0])], False),
        (lambda x: x * torch.from_numpy(np.ones(6, dtype=np.float32)), False),
        (lambda x: torch.where(x > 0, x, 0), False),
    ],
)
def test_shapes_that_depend_on_values_are_reported(
    function: Callable[[Tensor], Tensor], dynamic: bool
) -> None:
    _, layer, last = costs(LINEAR, partial(Calls, function), LINEAR)
    assert layer.dynamic == dynamic
    assert layer.flops_forward > 0
    assert last.warning is None


def test_a_warning_is_given_once_for_each_kind() -> None:
    reads = [partial(Calls, lambda x: x * float(x.sum())) for _ in range(5)]
    selects = partial(Calls, lambda x: x[x[:, 0] > 0])
    first, second = notes(costs(*reads, selects, LINEAR))
    assert first.startswith("layers layer0, layer1, layer2 and 2 more: cost counted on one example: ")
    assert second.startswith("layer layer5: cost counted on one example: does not run on the meta device (")


class Killed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Hangs(nn.Linear):
    lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return super().forward(x)


def test_a_layer_that_kills_its_process_is_guessed() -> None:
    first, killed, last = costs(LINEAR, partial(Killed, 6, 6), LINEAR)
    assert (first.warning, last.warning) == (None, None)
    assert killed.warning is not None
    assert (
        "guessed from the parameters: does not end on the meta device (it was ended by SIGKILL)"
        in killed.warning
    )
    assert killed.parameters == 42
    assert last.flops_forward == 2 * 4 * 36


def test_layers_that_wait_for_ever_are_guessed() -> None:
    start = time.monotonic()
    with Hangs.lock:
        layers = costs(partial(Hangs, 6, 6), LINEAR, partial(Hangs, 6, 6), LINEAR, patience=0.5)
    assert time.monotonic() - start < 20
    hung, counted, again, rest = (layer.warning for layer in layers)
    assert "it took longer than 0.5 s" in str(hung)
    assert counted is None
    assert None not in (again, rest)  # nobody waits a third time


def test_errors_of_a_build_keep_their_kind_and_traceback() -> None:
    class CustomError(Exception):  # cannot be pickled
        pass

    def missing() -> nn.Module:
        raise FileNotFoundError(2, "no such file", "weights.pt")

    def broken() -> nn.Module:
        raise CustomError("out of order")

    with pytest.raises(FileNotFoundError, match="no such file") as caught:
        costs(missing)
    assert "in missing" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="CustomError: out of order"):
        costs(broken)


class Mixed(nn.Module):
    """Parameters of many types."""

    def __init__(self) -> None:
        super().__init__()
        self.of_real = nn.Parameter(torch.randn(6, 6))
        self.of_double = nn.Parameter(torch.randn(6, dtype=torch.float64))
        self.of_complex = nn.Parameter(torch.randn(6, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() @ self.of_real.float() * self.of_double + (x * self.of_complex).real).to(x.dtype)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_parameters_of_many_types(compute: torch.dtype) -> None:
    layer = costs(Mixed, LINEAR, compute=compute)[0]
    assert layer.parameter_bytes == 4 * 36 + 8 * 6 + 8 * 6
    assert (layer.warning, layer.flops_forward) == (None, 2 * 4 * 36)


def test_lazy_layers() -> None:
    lazy, plain = costs(partial(nn.LazyLinear, 6), LINEAR, inputs=X)
    assert (lazy.warning, lazy.parameters, lazy.flops_forward) == (None, 42, plain.flops_forward)
    model = Model((Layer("lazy", partial(nn.LazyLinear, 6)),), NoLoss())
    assert list(Parameters(model).of(model.layers[0])) == ["weight", "bias"]


def test_layers_with_hooks_and_parametrizations() -> None:
    def parametrized() -> nn.Module:
        return nn.utils.parametrizations.spectral_norm(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)))

    def hooked() -> nn.Module:
        linear = nn.Linear(6, 6)
        linear.register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,))
        linear.register_full_backward_hook(lambda _module, gradients, _: gradients)
        linear.weight.register_hook(lambda gradient: 2 * gradient)
        return linear

    old = nn.utils.weight_norm(nn.Linear(6, 6))  # keeps a tensor that is no parameter
    norm = parametrized()
    for layer in costs(parametrized, hooked, lambda: old, lambda: norm, compute=torch.bfloat16):
        assert layer.warning is None
        assert layer.flops_forward >= 2 * 4 * 36


def test_what_is_compiled_is_costed_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the compiler was called")

    existing = torch.compile(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), backend=fail)
    inner = nn.Sequential(nn.Linear(6, 6), torch.compile(nn.Tanh(), backend=fail))
    function = torch.compile(lambda x: x.tanh(), backend=fail)
    in_place = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    in_place.compile(backend=fail)
    builds = [
        lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh()),
        lambda: existing,
        lambda: inner,
        lambda: torch.compile(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), backend=fail),
        lambda: in_place,
    ]
    expected, *others = costs(*builds, inputs=FLOATS)
    for other in others:
        assert (other.warning, other.forward, other.trained_bytes) == (
            None,
            expected.forward,
            expected.trained_bytes,
        )
    assert costs(partial(Calls, function))[0].warning is None
    names = Parameters(Model((Layer("compiled", lambda: existing),), NoLoss()))
    assert list(names.of(names._layers[0])) == ["0.weight", "0.bias"]
    assert expected.forward > FLOPS_PER_BYTE
