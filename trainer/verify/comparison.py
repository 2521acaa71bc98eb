"""Comparisons between a launch and its reference: differences, bounds, failures, and a table of all."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Cell:
    """One value, such as the gradient of one parameter, compared at every step.

    Attributes:
        difference: The largest difference so far; None where only digests are compared.
        share: The largest ratio so far of a difference to its bound.
        same_bits: Whether the bits have been equal at every step.
        failed_at: The first step at which a difference exceeded its bound; None if there is none.
        failure: What failed there, in words.
        promised: Whether equality was promised, within a bound or to the bit; if not, nothing fails.
    """

    difference: float | None = None
    share: float = 0.0
    same_bits: bool = True
    failed_at: int | None = None
    failure: str = ""
    promised: bool = True

    def add(self, step: int, difference: float | None, share: float) -> None:
        """Record a difference; its share is infinite if equal bits are expected."""
        self.same_bits = False
        if not self.promised:
            return
        self.share = _larger(self.share, share)
        if difference is not None:
            self.difference = _larger(self.difference or 0.0, difference)
        if not share <= 1 and self.failed_at is None:
            self.failed_at = step
            seen = "has different bits" if difference is None else f"is off by {difference:.2g}"
            bound = "where equal bits are expected" if math.isinf(share) else f"{share:.3g} times its bound"
            self.failure = f"{seen} at step {step}, {bound}"


@dataclass
class Comparison:
    """All compared values, by name and kind ("gradient", "weight", ...), in the order of comparison."""

    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)

    def number(self, step: int, name: str, *, seen: float, expected: float, allowed: float = 0.0) -> None:
        """Compare two numbers."""
        numbers = [torch.tensor(number, dtype=torch.float64) for number in (seen, expected, allowed)]
        self.tensor(step, name, "", seen=numbers[0], expected=numbers[1], allowed=numbers[2])

    def tensor(
        self,
        step: int,
        name: str,
        kind: str,
        *,
        seen: Tensor | None,
        expected: Tensor | None,
        allowed: Tensor | None = None,
        promised: bool = True,
    ) -> None:
        """Compare two tensors, on any device.

        Args:
            step: The step.
            name: The parameter or buffer, such as "block.0/widen.weight".
            kind: What is compared of it, such as "gradient".
            seen: The launch's tensor, or None if it has none.
            expected: The reference's tensor, or None if it has none.
            allowed: The bound on the difference, by element, possibly infinite; None: equal bits.
            promised: Whether a difference is a failure.
        """
        cell = self._cell(name, kind)
        cell.promised = promised
        if seen is None or expected is None or seen.shape != expected.shape or seen.dtype != expected.dtype:
            cell.add(step, math.nan, math.inf)
            return
        seen, expected = one_nan(seen.detach().cpu()), one_nan(expected.detach().cpu())
        if _same_bits(seen, expected):
            return
        if seen.is_complex():  # the bound is for each part
            seen, expected = torch.view_as_real(seen), torch.view_as_real(expected)
            allowed = None if allowed is None else allowed[..., None]
        difference = (seen.double() - expected.double()).abs()
        bound = torch.zeros(()) if allowed is None else allowed.detach().cpu().double()
        # inf - inf and inf / inf would give NaN.
        same = (seen == expected) | (seen.isnan() & expected.isnan())
        difference = torch.where(same | bound.isinf(), 0.0, difference)
        share = torch.where(difference > 0, difference / bound, 0.0 * difference)
        cell.add(step, difference.max().item(), share.max().item())

    def digest(
        self,
        step: int,
        name: str,
        kind: str,
        *,
        seen: str | None,
        expected: str | None,
        promised: bool = True,
    ) -> None:
        """Compare two digests; None means that a side lacks the value."""
        cell = self._cell(name, kind)
        cell.promised = promised
        if seen != expected:
            cell.add(step, None, math.inf)

    def expect(self, names: Iterable[str]) -> None:
        """Start the table with these rows, in this order."""
        for name in names:
            self.cells.setdefault(name, {})

    def failures(self) -> list[str]:
        """Return a line for every name that exceeded a bound, ordered by step."""
        failed = []
        for name, cells in self.cells.items():
            found = [(cell.failed_at, kind, cell) for kind, cell in cells.items() if cell.failed_at]
            if found:
                words = [f"its {kind} {cell.failure}" if kind else cell.failure for _, kind, cell in found]
                failed.append((min(at for at, _, _ in found), f"{name}: {'; '.join(words)}"))
        return [text for _, text in sorted(failed, key=lambda entry: entry[0])]

    @property
    def same_bits(self) -> bool:
        """Return whether everything had equal bits."""
        return all(cell.same_bits for _, _, cell in self._all())

    def verdict(self) -> str:
        """Return how equal all promised values are, such as "to the last bit"."""
        words = {"": "", "gradient": "gradients", "weight": "weights", "buffer": "running statistics"}
        promised = [
            (words.get(kind, kind) or name, cell) for name, kind, cell in self._all() if cell.promised
        ]
        rounded = list(dict.fromkeys(what for what, cell in promised if not cell.same_bits))
        exact = dict.fromkeys(what for what, _ in promised if what not in rounded)
        if not rounded:
            return "to the last bit"
        return f"within rounding ({', '.join(rounded)}) or to the last bit ({', '.join(exact)})"

    def unpromised(self) -> list[str]:
        """Return the names of values that differ as they may."""
        return [name for name, _, cell in self._all() if not cell.promised and not cell.same_bits]

    def table(self) -> str:
        """Return a row for every name: the largest difference of each kind, or "equal bits"."""
        kinds = list(dict.fromkeys(kind for _, kind, _ in self._all()))
        rows = [("", *kinds)]
        rows += [(name, *(_words(of.get(kind)) for kind in kinds)) for name, of in self.cells.items() if of]
        widths = [max(len(row[column]) for row in rows) for column in range(len(kinds) + 1)]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def _cell(self, name: str, kind: str) -> Cell:
        return self.cells.setdefault(name, {}).setdefault(kind, Cell())

    def _all(self) -> Iterator[tuple[str, str, Cell]]:
        for name, cells in self.cells.items():
            for kind, cell in cells.items():
                yield name, kind, cell


def one_nan(tensor: Tensor) -> Tensor:
    """Return a tensor whose NaNs all have the same bits, because processors choose different ones."""
    return tensor.masked_fill(tensor.isnan(), math.nan) if tensor.is_floating_point() else tensor


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))


def _words(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.same_bits:
        return "equal bits"
    if not cell.promised:
        return "differs"
    words = "differs" if cell.difference is None else f"off by {cell.difference:.1e}"
    return f"{words} FAILED" if cell.failed_at else f"{words}, {cell.share:.0%} of its bound"


def _larger(one: float, other: float) -> float:
    """Return the larger of two numbers; NaN counts as the largest."""
    return one if math.isnan(one) or one >= other else other
