"""The engine: a small interpreter of actions, independent of MPI, Horovod, CUDA and the model."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from trainer.activation import Activation, TreeSpec, flatten, tuple_of, unflatten
from trainer.distributed.heartbeat import Waits, Word, heartbeat
from trainer.distributed.waiting import WaitMeter
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.measures import Measured
from trainer.pipeline.source import Source, TokenSource
from trainer.pipeline.stage import Stage
from trainer.pipeline.ties import TiedParameters
from trainer.pipeline.timings import StepTimings
from trainer.pipeline.transport import Transport
from trainer.schedule.actions import COMPLETES_WEIGHT_GRADIENT, Action, Kind
from trainer.schedule.coding import number_of
from trainer.schedule.timeline import ActionTimes, AllReduce


class Gradients(Protocol):
    """Processes the gradients of each layer once they are complete, such as averaging over replicas."""

    def begin(self, done: list[AllReduce]) -> None:
        """Begin a step; every all-reduce that completes in it is appended to `done`."""

    def start(self, layer: BuiltLayer) -> None:
        """Start to average a layer's gradients, which are complete."""

    def progress(self) -> None:
        """Record completed all-reduces; called after every layer."""

    def finish(self, layer: BuiltLayer) -> None:
        """Wait until the layer's gradients are averaged."""


class ForwardOnly(Protocol):
    """What stands for a stage where only forwards run.

    Attributes:
        device: The device of its layers.
    """

    device: torch.device

    def train(self, mode: bool) -> None:
        """Set the layers to training or to inference."""

    def forward(
        self, micro_batch: int, tensors: list[Tensor], nest: TreeSpec, *, split: bool = False
    ) -> tuple[list[Tensor], TreeSpec]:
        """Run the layers on a flattened activation."""


@dataclass
class _Run:
    """The state of one run of a list of actions."""

    source: Source
    stages: Mapping[int, ForwardOnly]
    scale: float | None
    split: frozenset[tuple[int, int]]  # stage and micro-batch of split backwards
    last: Mapping[int, int]  # by stage: the micro-batch whose backward is its last
    inputs: dict[tuple[int, int], tuple[list[Tensor], TreeSpec]] = field(default_factory=dict)
    outputs: dict[tuple[int, int], tuple[list[Tensor], TreeSpec]] = field(default_factory=dict)
    gradients: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict)
    losses: dict[int, Tensor] = field(default_factory=dict)
    measured: dict[int, Measured] = field(default_factory=dict)
    tokens: dict[int, Tensor] = field(default_factory=dict)
    averaging: set[str] = field(default_factory=set)


class Engine:
    """Runs lists of actions on the stages of this rank.

    Args:
        stages: This rank's stages, by number.
        last_stage: The number of the model's last stage.
        local: Carries messages within this process.
        remote: Carries messages to and from other ranks of the group.
        gradients: Averages gradients over the replicas.
        ties: The tied parameters of this rank's stages.
        meter: Adds up the waiting of all of these.

    Attributes:
        remote: Carries messages to and from other ranks of the group.
        timings: The times of the actions of the latest run.
    """

    def __init__(
        self,
        stages: Mapping[int, Stage],
        *,
        last_stage: int,
        local: Transport,
        remote: Transport,
        gradients: Gradients,
        ties: TiedParameters,
        meter: WaitMeter,
    ) -> None:
        self._stages = stages
        self._last_stage = last_stage
        self._local = local
        self.remote = remote
        self._averaging = gradients
        self._ties = ties
        self._meter = meter
        self._run: _Run
        self.timings = StepTimings()
        self._numbered: tuple[Sequence[Action], list[int]] = ((), [])
        self._do: dict[Kind, Callable[[Action], None]] = {
            Kind.FORWARD: self._forward,
            Kind.BACKWARD: self._backward,
            Kind.BACKWARD_INPUT: self._backward,
            Kind.BACKWARD_WEIGHT: self._weight_gradient,
            Kind.SEND_ACTIVATION: self._send_activation,
            Kind.RECEIVE_ACTIVATION: self._receive_activation,
            Kind.SEND_GRADIENT: self._send_gradient,
            Kind.RECEIVE_GRADIENT: self._receive_gradient,
            Kind.SEND_TIED_GRADIENT: self._send_tie,
            Kind.RECEIVE_TIED_GRADIENT: self._receive_tie,
            Kind.REDUCE_START: self._average,
            Kind.REDUCE_WAIT: self._finish,
            Kind.SEND_REDUCED_GRADIENT: self._send_tied,
            Kind.RECEIVE_REDUCED_GRADIENT: self._receive_tied,
            Kind.UPDATE: self._before_update,
            Kind.SAMPLE: self._sample,
            Kind.SEND_TOKEN: self._send_token,
            Kind.RECEIVE_TOKEN: self._receive_token,
        }

    def train(self, actions: Sequence[Action], source: Source, scale: float) -> dict[int, Tensor]:
        """Run a training step without its update: forwards, backwards, averaging.

        The caller performs the UPDATEs at the end of the list. When this returns, the gradients of all stages
        of this rank are averaged, and every send is complete.

        Args:
            actions: This rank's list.
            source: This replica's micro-batches.
            scale: The factor of every loss's sum in its backward: 1 / the global count, times the loss scale
                if there is one.

        Returns:
            The unscaled sum of the losses of every micro-batch; empty on ranks without the last stage.
        """
        return self._execute(actions, source, scale, self._stages)

    def infer(
        self,
        actions: Sequence[Action],
        source: Source,
        stages: Mapping[int, ForwardOnly] | None = None,
    ) -> dict[int, Tensor]:
        """Run the forward passes of an evaluation or a generation; return the losses if there are targets.

        Args:
            actions: This rank's list.
            source: This replica's micro-batches.
            stages: What runs in place of this rank's stages, by number; None: they do.
        """
        return self._execute(actions, source, None, self._stages if stages is None else stages)

    @property
    def measured(self) -> Mapping[int, Measured]:
        """Return the metrics of every micro-batch of the latest evaluation; empty without the last stage."""
        return self._run.measured

    def _execute(
        self,
        actions: Sequence[Action],
        source: Source,
        scale: float | None,
        stages: Mapping[int, ForwardOnly],
    ) -> dict[int, Tensor]:
        training = scale is not None
        split = frozenset((a.stage, a.micro_batch) for a in actions if a.kind is Kind.BACKWARD_WEIGHT)
        last = {a.stage: a.micro_batch for a in actions if a.kind in COMPLETES_WEIGHT_GRADIENT}
        self._run = _Run(source, stages, scale, split, last)
        for stage in stages.values():
            stage.train(training)
        signatures = source.signatures() if 0 in self._stages else None
        self.remote.begin(actions, signatures, "training" if training else "inference")
        self.timings = StepTimings(actions=actions)
        self._averaging.begin(self.timings.all_reduces)
        clock, note, meter = time.perf_counter, self.timings.times.append, self._meter
        words, times = heartbeat.words, heartbeat.times
        words[Word.RUNS] += 1
        number_at, since = int(Word.ACTION), int(Word.SINCE)
        with torch.set_grad_enabled(training):
            for action, number in zip(actions, self._numbers_of(actions), strict=True):
                start, waited = clock(), meter.seconds
                words[number_at], times[since] = number, start
                self._do[action.kind](action)
                note(ActionTimes(start, start + (meter.seconds - waited), clock()))
        heartbeat.join(Waits.SENDS)
        self.remote.finish()
        heartbeat.go_on()
        words[number_at] = 0
        return self._run.losses

    def _numbers_of(self, actions: Sequence[Action]) -> Sequence[int]:
        """Return the heartbeats of a list of actions; those of the list of training are kept."""
        if actions is not self._numbered[0]:
            self._numbered = actions, [number_of(action) for action in actions]
        return self._numbered[1]

    def _route(self, action: Action) -> Transport:
        return self._local if action.peer in self._stages else self.remote

    def _forward(self, action: Action) -> None:
        stage, i = self._run.stages[action.stage], action.micro_batch
        if action.stage == 0:
            tensors, nest = flatten(self._run.source.inputs(i))
            tensors = [tensor.to(stage.device, non_blocking=True) for tensor in tensors]
        else:
            tensors, nest = self._run.inputs.pop((action.stage, i))
        tensors, nest = stage.forward(i, tensors, nest, split=(action.stage, i) in self._run.split)
        target = self._run.source.targets(i) if action.stage == self._last_stage else None
        if target is None:
            self._run.outputs[action.stage, i] = tensors, nest
        else:
            self._run.losses[i] = self._loss(i, unflatten(tensors, nest), target)

    def _loss(self, micro_batch: int, output: Activation, target: Activation) -> Tensor:
        stage = self._stages[self._last_stage]
        tensors, nest = flatten(target)
        moved = unflatten([tensor.to(stage.device, non_blocking=True) for tensor in tensors], nest)
        if self._run.scale is None:
            self._run.measured[micro_batch] = stage.measure(micro_batch, output, moved)
        return stage.loss_sum(micro_batch, output, moved)

    def _backward(self, action: Action) -> None:
        stage, i = self._stages[action.stage], action.micro_batch
        if action.stage == self._last_stage:
            assert self._run.scale is not None
            gradients = [torch.full_like(self._run.losses[i], self._run.scale)]
        else:
            gradients = self._run.gradients.pop((action.stage, i))
        gradients = stage.backward(i, gradients, self._completing(action))
        if action.stage > 0:
            self._run.gradients[action.stage - 1, i] = gradients

    def _weight_gradient(self, action: Action) -> None:
        self._stages[action.stage].weight_gradients(action.micro_batch, self._completing(action))

    def _completing(self, action: Action) -> Callable[[BuiltLayer], None] | None:
        """Return the callback for every layer that the action completes; None if it completes none."""
        last = action.kind in COMPLETES_WEIGHT_GRADIENT and self._run.last[action.stage] == action.micro_batch
        return self._complete if last else None

    def _send_activation(self, action: Action) -> None:
        tensors, nest = self._run.outputs.pop((action.stage, action.micro_batch))
        self._route(action).send(action, tensors, nest)

    def _receive_activation(self, action: Action) -> None:
        self._run.inputs[action.stage, action.micro_batch] = self._route(action).receive(action)

    def _send_gradient(self, action: Action) -> None:
        tensors = self._run.gradients.pop((action.peer, action.micro_batch))
        self._send_list(action, tensors)

    def _receive_gradient(self, action: Action) -> None:
        self._run.gradients[action.stage, action.micro_batch] = self._route(action).receive(action)[0]

    def _send_list(self, action: Action, tensors: Sequence[Tensor]) -> None:
        self._route(action).send(action, tensors, tuple_of(len(tensors)))

    def _complete(self, layer: BuiltLayer) -> None:
        """Average a layer after its own last backward, unless uses elsewhere still add to its gradients."""
        if not self._ties.is_owner(layer):
            self._start_averaging(layer)

    def _start_averaging(self, layer: BuiltLayer) -> None:
        self._run.averaging.add(layer.name)
        self._averaging.start(layer)

    def _average(self, action: Action) -> None:
        for layer in reversed(self._stages[action.stage].parts):
            if layer.name not in self._run.averaging:
                self._start_averaging(layer)

    def _finish(self, action: Action) -> None:
        for layer in reversed(self._stages[action.stage].parts):
            self._averaging.finish(layer)

    def _send_tie(self, action: Action) -> None:
        self._send_list(action, self._ties.gradients_of_uses(owner=action.peer, use=action.stage))

    def _receive_tie(self, action: Action) -> None:
        received, _ = self._route(action).receive(action)
        self._ties.add_to_owners(received, owner=action.stage, use=action.peer)

    def _send_tied(self, action: Action) -> None:
        self._send_list(action, self._ties.gradients_of_owners(owner=action.stage, use=action.peer))

    def _receive_tied(self, action: Action) -> None:
        received, _ = self._route(action).receive(action)
        self._ties.give_to_uses(received, owner=action.peer, use=action.stage)

    def _before_update(self, action: Action) -> None:
        """Wait until every gradient has been sent: the caller's update changes them."""
        self.remote.finish()

    def _sample(self, action: Action) -> None:
        tensors, nest = self._run.outputs.pop((action.stage, action.micro_batch))
        output = unflatten(tensors, nest)
        self._run.tokens[action.micro_batch] = self._token_source().sample(action.micro_batch, output)

    def _send_token(self, action: Action) -> None:
        self._send_list(action, [self._run.tokens.pop(action.micro_batch)])

    def _receive_token(self, action: Action) -> None:
        received, _ = self._route(action).receive(action)
        self._token_source().append(action.micro_batch, received[0])

    def _token_source(self) -> TokenSource:
        source = self._run.source
        if not isinstance(source, TokenSource):
            raise TypeError(f"a schedule that samples needs a TokenSource, not {type(source).__name__}")
        return source
