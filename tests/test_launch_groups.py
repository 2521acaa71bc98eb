"""Groups stay on one host where slots allow it; the rest is counted and described."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import UserError
from trainer.launch.groups import crossings, describe, take
from trainer.launch.place import Host


def hosts(*slots: int) -> list[Host]:
    return [Host(f"h{number}", each) for number, each in enumerate(slots, 1)]


def taken(slots: tuple[int, ...], ranks: int, group: int) -> list[tuple[str, int]]:
    return [(host.name, host.slots) for host in take(hosts(*slots), ranks, group)]


def test_as_in_the_docstring() -> None:
    assert taken((6, 6), 8, 4) == [("h1", 4), ("h2", 4)]
    assert taken((3, 2, 3), 8, 2) == [("h1", 3), ("h3", 3), ("h2", 2)]


def test_hosts_are_filled_in_order() -> None:
    assert taken((4, 4, 4), 8, 2) == [("h1", 4), ("h2", 4)]


@given(
    slots=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    group=st.integers(1, 4),
    groups=st.integers(1, 8),
)
def test_no_group_crosses_if_none_must(slots: list[int], group: int, groups: int) -> None:
    ranks = group * groups
    if sum(slots) < ranks:
        with pytest.raises(UserError, match=f"-np {ranks}"):
            take(hosts(*slots), ranks, group)
        return
    found = take(hosts(*slots), ranks, group)
    assert sum(host.slots for host in found) == ranks
    limits = {host.name: host.slots for host in hosts(*slots)}
    assert all(host.slots <= limits[host.name] for host in found)
    if sum(each // group for each in slots) >= groups:
        assert not crossings(found, group)
    else:  # no order of full hosts does without one
        for order in permutations(hosts(*slots)):
            names = [host.name for host in order for _ in range(host.slots)][:ranks]
            parts = [set(names[first : first + group]) for first in range(0, ranks, group)]
            assert any(len(part) > 1 for part in parts)


def test_in_slurm_the_order_stays() -> None:
    found = take(hosts(3, 2, 3), 8, 2, fixed=True)
    assert [host.name for host in found] == ["h1", "h2", "h3"]
    assert [crossing.replica for crossing in crossings(found, 2)] == [1, 2]


def test_one_task_with_several_cores_takes_several_ranks() -> None:
    assert take([Host("h1", 1, 4)], 4, 2)[0].slots == 4
    spread = take([Host("h1", 1, 4), Host("h2", 1, 4)], 4, 2)
    assert [host.slots for host in spread] == [2, 2]
    with pytest.raises(UserError, match="there are 4"):
        take([Host("h1", 1, 4)], 8, 2)


def test_description() -> None:
    found = take(hosts(1, 1), 2, 2)
    line = describe(crossings(found, 2), 2, found)
    assert line.startswith("replica 0 (ranks 0, 1) crosses hosts h1, h2: ")
    assert "network" in line
    uneven = take(hosts(3, 1), 4, 2)
    assert "multiple of 2 slots" in describe(crossings(uneven, 2), 2, uneven)
