"""`run.trace=true` writes one file with every action, message and all-reduce of every rank.

The same run shows what else is computed from observed steps: `timeline.json` and the bubble's prediction.
"""

import json
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest

from tests.support.runs import Finished, Trained
from tests.support.schedules import training_schedule
from tests.support.trace_format import check_trace
from trainer.metrics.timeline import StepTimeline
from trainer.schedule.actions import Tied

pytestmark = pytest.mark.parallel

RANKS, STAGES, MICRO_BATCHES = 4, 2, 4  # micro-batches per replica
STEPS, FIRST_FORECAST = 7, 5
LAYERS = {0: {"embedding", "block.0", "block.1"}, 1: {"block.2", "block.3", "head"}}

Event = dict[str, Any]


@pytest.fixture(scope="module")
def run(finished: Trained, small: list[str]) -> Finished:
    overrides = [*small, f"layout.stages={STAGES}", f"train.steps={STEPS}", "run.trace=true", "eval.every=0"]
    return finished(RANKS, *overrides, "generate.tokens=0")


@pytest.fixture(scope="module")
def trace(run: Finished) -> Event:
    content: Event = json.loads((run.folder / "trace.json").read_text())
    return content


def bars(trace: Event) -> list[Event]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def test_the_trace_follows_its_format(trace: Event) -> None:
    check_trace(trace)


def test_every_action_of_every_rank_is_recorded_and_none_overlap(trace: Event) -> None:
    of_ranks = [bar for bar in bars(trace) if bar["cat"] != "all-reduce"]
    assert {(bar["pid"], bar["tid"]) for bar in of_ranks} == {(0, 0), (0, 1), (1, 2), (1, 3)}
    schedule = training_schedule("1f1b", STAGES, MICRO_BATCHES, [Tied(0, 1)])
    for rank in range(RANKS):
        mine = sorted((bar for bar in of_ranks if bar["tid"] == rank), key=lambda bar: bar["ts"])
        done = [bar["args"]["action"] for bar in mine if bar["cat"] != "wait"]
        assert done == [str(action) for action in schedule.workers[rank % STAGES]] * STEPS
        assert [bar["args"]["step"] for bar in mine] == sorted(bar["args"]["step"] for bar in mine)
        for bar, following in pairwise(mine):
            assert bar["ts"] + bar["dur"] <= following["ts"] + 1e-3


def test_every_message_is_an_arrow(trace: Event) -> None:
    begin = {event["id"]: event["ts"] for event in trace["traceEvents"] if event["ph"] == "s"}
    end = {event["id"]: event["ts"] for event in trace["traceEvents"] if event["ph"] == "f"}
    error = trace["otherData"]["largest clock error of a rank when measured, microseconds"]
    # In each replica: its micro-batches there and back, and a tied weight's gradient there and back.
    assert len(begin) == STEPS * 2 * (MICRO_BATCHES * 2 + 2)
    assert all(begin[message] < end[message] + 2 * error for message in begin)


def test_every_all_reduce_is_a_bar_beneath_its_rank(trace: Event) -> None:
    names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    layers: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    sizes: defaultdict[str, set[int]] = defaultdict(set)
    for bar in bars(trace):
        if bar["cat"] == "all-reduce":
            args = bar["args"]
            layers[names[bar["tid"]], args["step"]].append(args["layer"])
            sizes[args["layer"]].add(args["bytes"])
            assert 0 <= args["overlap"] <= 1
            assert bar["pid"] == int(names[bar["tid"]].split()[1]) // STAGES
    expected = {
        (f"rank {rank} all-reduces", step): LAYERS[rank % STAGES]
        for rank in range(RANKS)
        for step in range(1, STEPS + 1)
    }
    assert {key: set(each) for key, each in layers.items()} == expected
    assert all(len(each) == len(set(each)) for each in layers.values())
    assert all(len(each) == 1 for each in sizes.values())  # the same on both replicas, in every step
    width, vocabulary, context = 32, 256, 32
    assert sizes["embedding"] == {4 * width * (vocabulary + context)}
    assert sizes["head"] == {4 * 2 * width}  # its weight is tied: the embedding owns it


def test_a_usual_step_is_kept_measured_and_predicted(run: Finished) -> None:
    timeline = StepTimeline.load(run.folder / "timeline.json")
    schedule = training_schedule("1f1b", STAGES, MICRO_BATCHES, [Tied(0, 1)])
    assert tuple(rank.actions for rank in timeline.measured) == schedule.workers
    assert tuple(rank.actions for rank in timeline.predicted) == schedule.workers
    assert timeline.predicted_seconds > 0
    assert 2 <= timeline.step <= STEPS
    assert timeline.seconds == run.steps[timeline.step - 1]["step_seconds"]
    for measured, predicted, layers in zip(
        timeline.measured, timeline.predicted, LAYERS.values(), strict=True
    ):
        assert {reduce.layer for reduce in measured.all_reduces} == layers
        assert {reduce.layer for reduce in predicted.all_reduces} == layers
        for times, following in pairwise(measured.times):
            assert times.start <= times.ready <= times.end <= following.start


def test_the_bubble_is_predicted_anew_from_observed_steps(run: Finished) -> None:
    """At first from the layers' FLOPs; after the fifth step from measured times."""
    predicted = [step["bubble_predicted"] for step in run.steps]
    assert len(set(predicted[:FIRST_FORECAST])) == 1
    assert len(set(predicted[FIRST_FORECAST:])) == 1
    assert predicted[0] != predicted[FIRST_FORECAST]
    assert all(0 < bubble < 1 for bubble in predicted)
