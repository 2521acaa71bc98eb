"""Messages: nothing known in advance is resent, and receives are posted before they are needed."""

import pickle
import threading
import time
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.wires.in_process import Exchange, InProcess
from trainer.activation import flatten, unflatten
from trainer.distributed.waiting import WaitMeter
from trainer.errors import TrainingError
from trainer.pipeline.messages import Messages, number_of_tags
from trainer.schedule.actions import RECEIVE_OF, Action, Kind

CPU = torch.device("cpu")
LONG = 0.3  # seconds


class Pair:
    """Two ranks with a stage each; control messages and tensors have separate wires."""

    def __init__(self) -> None:
        self.control, self.data = Exchange(), Exchange()
        self.meters = [WaitMeter(), WaitMeter()]
        self.ends = [
            Messages(
                rank=rank,
                rank_of=[0, 1],
                devices={rank: CPU},
                control=InProcess(self.control, rank),
                wire_to=lambda _, rank=rank: InProcess(self.data, rank),  # type: ignore[misc]
                meter=self.meters[rank],
            )
            for rank in range(2)
        ]

    def begin(self, signatures: Sequence[str], mode: str = "training") -> None:
        """Begin a step with only forwards on both ranks."""
        numbers = range(len(signatures))
        self.ends[0].begin([sending(i) for i in numbers], signatures, mode)
        self.ends[1].begin([receiving(i) for i in numbers], None, mode)

    def step(self, tensors: Sequence[Tensor], signatures: Sequence[str], mode: str = "training") -> None:
        """Send a tensor for each micro-batch, and receive it immediately."""
        self.begin(signatures, mode)
        for i, tensor in enumerate(tensors):
            self.ends[0].send(sending(i), [tensor], 0)
            (received,), nest = self.ends[1].receive(receiving(i))
            assert torch.equal(received, tensor)
            assert nest == 0
        for end in self.ends:
            end.finish()
        assert self.control.empty
        assert self.data.empty

    def headers(self) -> int:
        """Return the number of messages on the control wire, signatures excluded."""
        return sum(tag > 0 for (_, _, tag), _ in self.control.sent)

    def posted(self) -> int:
        """Return the number of receives posted now."""
        return sum(map(len, self.data.posted.values()))


def sending(micro_batch: int) -> Action:
    return Action(Kind.SEND_ACTIVATION, 0, micro_batch, 1)


def receiving(micro_batch: int) -> Action:
    return Action(Kind.RECEIVE_ACTIVATION, 1, micro_batch, 0)


def rows(*lengths: int) -> list[Tensor]:
    return [torch.randn(length, 3) for length in lengths]


def test_headers_end_once_eight_messages_of_a_signature_have_had_one_structure() -> None:
    pair = Pair()
    pair.step(rows(*[2] * 7), ["two"] * 7)
    assert pair.headers() == 7
    pair.step(rows(2, 2), ["two"] * 2)  # a step that has begun with headers ends with them
    assert pair.headers() == 9
    pair.step(rows(2, 2), ["two"] * 2)
    assert pair.headers() == 9
    pair.step(rows(2, 5, 2, 5), ["two", "five", "two", "five"])
    assert pair.headers() == 11
    pair.step(rows(4), ["two"], mode="inference")  # shapes may follow from the mode
    assert pair.headers() == 12
    pair.step(rows(2, 5, 2), ["two", "five", "two"])
    assert pair.headers() == 13


def test_a_channel_whose_shapes_vary_keeps_its_headers() -> None:
    pair = Pair()
    for lengths in ([3, 1, 4, 1], [5, 9, 2, 6], [5, 3, 5, 8], [9, 7, 9, 3]):
        before = pair.headers()
        pair.step(rows(*lengths), ["same"] * 4)
        assert pair.headers() == before + 4


def test_headers_and_signatures_use_the_control_wire_and_tensors_the_other() -> None:
    pair = Pair()
    pair.step(rows(2, 2), ["two"] * 2)
    assert all(isinstance(content, bytes) for _, content in pair.control.sent)
    assert [content[0].shape for _, content in pair.data.sent] == [(2, 3), (2, 3)]


def test_unchanged_signatures_are_not_resent() -> None:
    pair = Pair()
    for signatures in (["a", "b"], ["a", "b"], ["b", "a"]):
        pair.begin(signatures)
    sent = [content for (_, _, tag), content in pair.control.sent if tag == 0]
    assert [pickle.loads(content) if content else None for content in sent] == [
        ("a", "b"),
        None,
        ("b", "a"),
    ]


def test_two_receives_a_channel_are_posted_ahead() -> None:
    pair = Pair()
    pair.begin(["two"] * 8)
    assert pair.posted() == 0  # no structure is known yet
    for i, tensor in enumerate(rows(*[2] * 8)):
        pair.ends[0].send(sending(i), [tensor], 0)
        pair.ends[1].receive(receiving(i))
    pair.begin(["two"] * 5)
    assert pair.posted() == 2  # before anything is sent
    pair.ends[0].send(sending(0), rows(2), 0)
    pair.ends[1].receive(receiving(0))
    assert pair.posted() == 1  # the next one is posted after a send, or with the next receive
    pair.ends[0].send(sending(1), rows(2), 0)
    pair.ends[1].receive(receiving(1))
    assert pair.posted() == 1
    for i in range(2, 5):
        pair.ends[0].send(sending(i), rows(2), 0)
        pair.ends[1].receive(receiving(i))
    assert pair.posted() == 0
    assert pair.data.most_posted == 2


def test_the_next_receives_are_posted_by_a_send() -> None:
    """A rank receives, computes and sends; meanwhile its next receives are posted."""
    pair = Pair()
    pair.step(rows(*[2] * 8), ["two"] * 8)
    gradient = Action(Kind.SEND_GRADIENT, 1, 0, 0)
    for _ in range(2):
        pair.ends[0].begin([sending(i) for i in range(4)], ["two"] * 4, "training")
        pair.ends[1].begin([*map(receiving, range(4)), gradient], None, "training")
        before = pair.posted()
        pair.ends[0].send(sending(0), rows(2), 0)
        pair.ends[1].receive(receiving(0))
        pair.ends[1].send(gradient, rows(2), 0)
        after = pair.posted()
        for i in range(1, 4):
            pair.ends[0].send(sending(i), rows(2), 0)
            pair.ends[1].receive(receiving(i))
    assert (before, after) == (2, 2)


def test_a_posted_receive_waits_for_its_header() -> None:
    """In the signatures a, a, b, a only b is new: no receive is posted past it."""
    pair = Pair()
    pair.step(rows(*[2] * 8), ["a"] * 8)
    pair.begin(["a", "b", "a"])
    assert pair.posted() == 1
    for i, tensor in enumerate(rows(2, 7, 2)):
        pair.ends[0].send(sending(i), [tensor], 0)
        assert torch.equal(pair.ends[1].receive(receiving(i))[0][0], tensor)
    assert pair.headers() == 8 + 1


def test_order_is_kept_when_all_is_sent_before_anything_is_received() -> None:
    pair = Pair()
    lengths = [3, 1, 3, 3, 1, 2]
    sent = rows(*lengths)
    for _ in range(2):
        pair.begin([str(length) for length in lengths])
        for i, tensor in enumerate(sent):
            pair.ends[0].send(sending(i), [tensor], 0)
        for i, tensor in enumerate(sent):
            assert torch.equal(pair.ends[1].receive(receiving(i))[0][0], tensor)


def test_channels_do_not_mix() -> None:
    """Activations in one direction, and every other kind of message between the same stages."""
    pair = Pair()
    there = [Action(kind, 0, i, 1) for i in range(2) for kind in RECEIVE_OF]
    back = [Action(RECEIVE_OF[action.kind], 1, action.micro_batch, 0) for action in there]
    pair.ends[0].begin(there, ["same"] * 2, "training")
    pair.ends[1].begin(back, None, "training")
    sent = {action: torch.randn(4) for action in there}
    for action, tensor in sent.items():
        pair.ends[0].send(action, [tensor], 0)
    for action, theirs in reversed(list(zip(back[:5], there[:5], strict=True))):
        assert torch.equal(pair.ends[1].receive(action)[0][0], sent[theirs])
    for action, theirs in zip(back[5:], there[5:], strict=True):
        assert torch.equal(pair.ends[1].receive(action)[0][0], sent[theirs])


def test_nested_activations_arrive_as_they_were() -> None:
    pair = Pair()
    given: Any = {
        "x": torch.randn(2, 3, requires_grad=True),
        "rest": (torch.arange(4), None, torch.zeros(0, 5, dtype=torch.bfloat16)),
        "mask": torch.tensor([True, False]),
    }
    tensors, nest = flatten(given)
    pair.begin(["same"] * 3)
    for i in range(3):
        pair.ends[0].send(sending(i), tensors, nest)
        received, as_sent = pair.ends[1].receive(receiving(i))
        assert as_sent == nest
        assert [each.requires_grad for each in received] == [True, False, False, False]
        assert all(torch.equal(one, other) for one, other in zip(received, tensors, strict=True))
        assert list(unflatten(received, as_sent)) == ["x", "rest", "mask"]  # type: ignore[arg-type]


def test_a_message_may_have_no_tensors() -> None:
    pair = Pair()
    _, empty = flatten((None, None))
    pair.begin(["same"] * 2)
    for i in range(2):
        pair.ends[0].send(sending(i), [], empty)
        assert pair.ends[1].receive(receiving(i)) == ([], empty)


def test_a_shape_that_is_taken_for_granted_cannot_change() -> None:
    pair = Pair()
    pair.step(rows(*[2] * 8), ["same"] * 8)
    pair.begin(["same"])
    with pytest.raises(TrainingError, match=r"stage 0 handed on .*\(2, 3\).* and now .*\(4, 3\)"):
        pair.ends[0].send(sending(0), rows(4), 0)


def test_the_largest_message_of_a_channel_is_recorded() -> None:
    pair = Pair()
    pair.step(rows(2, 5, 1), ["two", "five", "one"])
    assert pair.ends[0].sizes == {(Kind.SEND_ACTIVATION, 0, 1): 5 * 3 * 4}
    assert pair.ends[1].sizes == {}


def test_finish_waits_until_all_sends_are_done() -> None:
    pair = Pair()
    pair.step(rows(*[2] * 8), ["same"] * 8)
    pair.begin(["same"] * 3)
    for i, tensor in enumerate(rows(2, 2, 2)):
        pair.ends[0].send(sending(i), [tensor], 0)
    finished = threading.Event()
    thread = threading.Thread(target=lambda: (pair.ends[0].finish(), finished.set()))
    thread.start()
    assert not finished.wait(0.1)
    pair.ends[1].receive(receiving(0))  # with the next one's receive posted
    assert not finished.wait(0.1)
    pair.ends[1].receive(receiving(1))
    thread.join(30.0)
    assert finished.is_set()
    pair.ends[1].receive(receiving(2))
    assert pair.control.empty
    assert pair.data.empty


def test_waiting_is_added_to_the_meter() -> None:
    pair = Pair()
    pair.begin(["same"])
    threading.Timer(LONG, pair.ends[0].send, [sending(0), rows(2), 0]).start()
    start = time.perf_counter()
    pair.ends[1].receive(receiving(0))
    assert pair.meters[1].seconds == pytest.approx(time.perf_counter() - start, abs=0.1)
    assert pair.meters[1].seconds > 0.9 * LONG
    assert pair.meters[0].seconds == 0.0


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_every_channel_has_its_own_tag(stages: int) -> None:
    """For every kind of message between all stages; 0 is for signatures."""
    control = Exchange()
    ends = [
        Messages(
            rank=rank,
            rank_of=range(stages),
            devices={rank: CPU},
            control=InProcess(control, rank),
            wire_to=lambda _, rank=rank: InProcess(control, rank),  # type: ignore[misc]
            meter=WaitMeter(),
        )
        for rank in range(stages)
    ]
    channels = [(kind, *ends) for kind in RECEIVE_OF for ends in product(range(stages), repeat=2)]
    for kind, source, target in channels:
        if source != target:
            ends[source].send(Action(kind, source, -1, target), [], None)
    tags = {tag for (_, _, tag), _ in control.sent}
    assert len(tags) == len(RECEIVE_OF) * stages * (stages - 1)
    assert all(0 < tag < number_of_tags(stages) for tag in tags)
