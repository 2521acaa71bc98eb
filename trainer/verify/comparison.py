"""What is compared with what, how far apart they are, how far they may be, and the table of it."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Cell:
    """One thing, such as the gradient of one parameter, compared at every step.

    Attributes:
        difference: The largest difference so far; None where only digests were compared.
        share: The largest share so far that a difference was of what is allowed.
        same_bits: Whether the bits have been equal at every step.
        failed_at: The first step at which a difference was larger than allowed; None if there is none.
        failure: What was seen there, in words.
    """

    difference: float | None = None
    share: float = 0.0
    same_bits: bool = True
    failed_at: int | None = None
    failure: str = ""

    def add(self, step: int, difference: float | None, share: float) -> None:
        """Take in a difference; one without bits in common has a share of infinity where none is allowed."""
        self.same_bits = False
        self.share = _larger(self.share, share)
        if difference is not None:
            self.difference = _larger(self.difference or 0.0, difference)
        if not share <= 1 and self.failed_at is None:
            self.failed_at = step
            seen = "has other bits" if difference is None else f"is off by {difference:.2g}"
            bound = "where equal bits are expected" if math.isinf(share) else f"{share:.3g} times its bound"
            self.failure = f"{seen} at step {step}, {bound}"


@dataclass
class Comparison:
    """All that was compared, by name and kind ("gradient", "weight", ...), in the order it came."""

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
    ) -> None:
        """Compare two tensors, on any device.

        Args:
            step: At which step.
            name: What they are, such as "block.0/widen.weight".
            kind: What of it, such as "gradient".
            seen: The launch's; None: it has none.
            expected: The reference's; None: it has none.
            allowed: How far they may be apart, element by element; infinite: as they like; None: not at all.
        """
        cell = self._cell(name, kind)
        if seen is None or expected is None or seen.shape != expected.shape or seen.dtype != expected.dtype:
            cell.add(step, math.nan, math.inf)
            return
        seen, expected = one_nan(seen.detach().cpu()), one_nan(expected.detach().cpu())
        if _same_bits(seen, expected):
            return
        difference = (seen.double() - expected.double()).abs()
        bound = torch.zeros(()) if allowed is None else allowed.detach().cpu().double()
        # An infinity less itself, or over a bound that is infinite too, would be no number.
        same = (seen == expected) | (seen.isnan() & expected.isnan())
        difference = torch.where(same | bound.isinf(), 0.0, difference)
        share = torch.where(difference > 0, difference / bound, 0.0 * difference)
        cell.add(step, difference.max().item(), share.max().item())

    def digest(self, step: int, name: str, kind: str, *, seen: str | None, expected: str | None) -> None:
        """Compare two digests; None: there is no such thing on that side."""
        cell = self._cell(name, kind)
        if seen != expected:
            cell.add(step, None, math.inf)

    def expect(self, names: Iterable[str]) -> None:
        """Give the table these rows, in this order, before what else comes."""
        for name in names:
            self.cells.setdefault(name, {})

    def failures(self) -> list[str]:
        """Return by name what went beyond what is allowed, the earliest steps first, in words."""
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

    def table(self) -> str:
        """Return a row for every name: for each kind the largest difference, and whether bits are equal."""
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
    """Return a tensor with one and the same NaN for all of them: their bits are the processor's choice."""
    return tensor.masked_fill(tensor.isnan(), math.nan) if tensor.is_floating_point() else tensor


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))


def _words(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.same_bits:
        return "equal bits"
    words = "differs" if cell.difference is None else f"off by {cell.difference:.1e}"
    return f"{words} FAILED" if cell.failed_at else f"{words}, {cell.share:.0%} of its bound"


def _larger(one: float, other: float) -> float:
    """Return the larger of two numbers; what is not a number is larger than all."""
    return one if math.isnan(one) or one >= other else other
