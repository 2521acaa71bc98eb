"""A group of one rank, for tests without MPI."""

from typing import Any


class Alone:
    """A group of one rank."""

    rank = 0
    size = 1

    def barrier(self) -> None: ...

    def all_gather_objects(self, value: Any) -> list[Any]:
        return [value]
