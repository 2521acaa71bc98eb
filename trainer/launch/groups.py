"""Which host takes how many ranks, in which order, so that model-parallel groups stay on one host.

A group's ranks are contiguous (`trainer.distributed.layout`), and mpirun fills one host after the other:

    group of 4, hosts h1:6, h2:6, 8 ranks      h1 takes 4, h2 takes 4; two slots of each stay empty
    group of 2, hosts h1:3, h2:2, h3:3         h1, h3, h2: one group crosses from h1 to h3, instead of two

mpirun begins with its own host, whatever the order of the others; in Slurm it keeps the order of the nodes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from trainer.errors import UserError
from trainer.launch.place import Host, is_here

_FEW = 4


@dataclass(frozen=True)
class Crossing:
    """A model-parallel group on several hosts.

    Attributes:
        replica: Its number.
        ranks: Its ranks.
        hosts: The hosts that hold them.
    """

    replica: int
    ranks: range
    hosts: tuple[str, ...]


def take(hosts: Sequence[Host], ranks: int, group: int, *, fixed: bool = False) -> tuple[Host, ...]:
    """Return the hosts in the order of their ranks; a host's slots are the number of its ranks.

    Args:
        hosts: What there is.
        ranks: The number of ranks.
        group: How many ranks hold one model.
        fixed: Whether the order is.

    Raises:
        UserError: There are fewer slots.
    """
    hosts = _with_room(hosts, ranks, group)
    if not fixed:
        hosts = sorted(hosts, key=lambda host: not is_here(host.name))
    whole = _fill(hosts, [host.slots // group for host in hosts], ranks // group, group)
    if whole is not None:
        return whole
    orders = [hosts] if fixed else [hosts, _side_by_side(hosts, group)]
    return min(
        (_in_order(order, ranks) for order in orders),
        key=lambda taken: len(crossings(taken, group)),
    )


def crossings(hosts: Sequence[Host], group: int) -> list[Crossing]:
    """Return the groups that more than one host holds."""
    names = [host.name for host in hosts for _ in range(host.slots)]
    found = []
    for replica, first in enumerate(range(0, len(names), group)):
        held = tuple(dict.fromkeys(names[first : first + group]))
        if len(held) > 1:
            found.append(Crossing(replica, range(first, min(first + group, len(names))), held))
    return found


def describe(crossing: Sequence[Crossing], group: int, hosts: Sequence[Host]) -> str:
    """Return a line on the groups that cross hosts: which, and what that costs."""
    first = crossing[0]
    more = f", and {len(crossing) - 1} more" if len(crossing) > 1 else ""
    few = len(first.ranks) <= _FEW
    ranks = ", ".join(map(str, first.ranks)) if few else f"{first.ranks[0]} to {first.ranks[-1]}"
    if all(host.slots < group for host in hosts):
        advice = f"no host takes the {group} ranks of a group: fewer layout.stages would fit one"
    else:
        advice = f"give each host a multiple of {group} slots"
    return (
        f"replica {first.replica} (ranks {ranks}) crosses hosts {', '.join(first.hosts)}{more}: every "
        f"micro-batch's activations and gradients go over the network, and stages wait for them; {advice}"
    )


def _with_room(hosts: Sequence[Host], ranks: int, group: int) -> list[Host]:
    """Return the hosts with as many slots as the job needs, if their cores allow it.

    Raises:
        UserError: They do not.
    """
    room = list(hosts)
    for step in (group, 1):
        grew = True
        while sum(host.slots for host in room) < ranks and grew:
            grew = False
            for place, host in enumerate(room):
                larger = (host.slots // step + 1) * step
                if larger <= host.cores and sum(each.slots for each in room) < ranks:
                    room[place] = replace(host, slots=larger)
                    grew = True
    slots = sum(host.slots for host in room)
    if slots < ranks:
        listed = ",".join(f"{host.name}:{host.slots}" for host in room)
        raise UserError(
            f"-np {ranks} needs {ranks} slots, but there are {slots} ({listed}): ask for fewer ranks, for a "
            "larger allocation, or say with -H how many ranks each host shall take"
        )
    return room


def _fill(hosts: Sequence[Host], groups: Sequence[int], needed: int, group: int) -> tuple[Host, ...] | None:
    """Return the hosts with whole groups alone; None if these are too few."""
    if sum(groups) < needed:
        return None
    taken = []
    for host, number in zip(hosts, groups, strict=True):
        if (held := min(number, needed)) > 0:
            taken.append(replace(host, slots=held * group))
            needed -= held
    return tuple(taken)


def _in_order(hosts: Sequence[Host], ranks: int) -> tuple[Host, ...]:
    return tuple(_until(hosts, ranks))


def _until(hosts: Sequence[Host], ranks: int) -> Iterator[Host]:
    for host in hosts:
        if ranks > 0:
            yield replace(host, slots=min(host.slots, ranks))
            ranks -= host.slots


def _side_by_side(hosts: Sequence[Host], group: int) -> list[Host]:
    """Return the hosts, the first in its place, those whose rests make up a group as neighbours."""
    whole = [host for host in hosts if host.slots % group == 0]
    rest = [host for host in hosts if host.slots % group]
    pairs: list[list[Host]] = []
    while rest:
        host = rest.pop(0)
        partner = [other for other in rest if (host.slots + other.slots) % group == 0][:1]
        rest = [other for other in rest if other not in partner]
        pairs.append([host, *partner])
    first_pair = pairs.pop(0) if pairs and pairs[0][0] is hosts[0] else []
    return [*first_pair, *whole, *(host for pair in pairs for host in pair)]
