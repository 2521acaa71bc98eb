"""What `trainer.verify` reports as equal, within its bound and beyond it."""

import math

import pytest
import torch

from trainer.config.schema import AveragingConfig
from trainer.verify.comparison import Comparison
from trainer.verify.replica_sum import ReplicaSum


def compared(
    seen: list[float], expected: list[float], allowed: list[float] | None = None
) -> tuple[Comparison, list[str]]:
    comparison = Comparison()
    bound = None if allowed is None else torch.tensor(allowed)
    comparison.tensor(
        2, "layer/weight", "gradient", seen=torch.tensor(seen), expected=torch.tensor(expected), allowed=bound
    )
    return comparison, comparison.failures()


def test_equal_bits() -> None:
    comparison, failures = compared([1.0, -2.5, math.nan], [1.0, -2.5, math.nan])
    assert not failures
    assert comparison.same_bits
    assert "equal bits" in comparison.table()


@pytest.mark.parametrize(
    ("seen", "expected"), [([1.0 + 2**-23], [1.0]), ([0.0], [-0.0]), ([math.nan], [1.0]), ([math.inf], [1.0])]
)
def test_different_bits_are_noticed(seen: list[float], expected: list[float]) -> None:
    assert not compared(seen, expected, [1.0])[0].same_bits


def test_zeros_of_either_sign_are_equal() -> None:
    assert not compared([0.0], [-0.0])[1]


def test_bounds_apply_to_elements() -> None:
    """The largest difference may be within its bound while a smaller one exceeds its own."""
    comparison, failures = compared([1.5, 0.1], [1.0, 0.0], [0.5, 0.2])
    assert not failures
    assert "off by 5.0e-01, 100% of its bound" in comparison.table()
    _, (failure,) = compared([1.5, 0.1], [1.0, 0.0], [0.5, 0.05])
    assert failure == "layer/weight: its gradient is off by 0.5 at step 2, 2 times its bound"


@pytest.mark.parametrize("seen", [[math.nan, 1.0], [math.inf, 1.0]])
def test_nan_exceeds_every_bound(seen: list[float]) -> None:
    assert compared(seen, [1.0, 1.0], [9.0, 1.0])[1]
    assert compared(seen, [1.0, 1.0])[1]


def test_a_different_shape_or_type_or_a_missing_tensor_fails() -> None:
    one = torch.zeros(2)
    for seen, expected in ((one, torch.zeros(3)), (one, one.double()), (None, one), (one, None)):
        comparison = Comparison()
        comparison.tensor(1, "x", "weight", seen=seen, expected=expected, allowed=torch.tensor(9.0))
        assert len(comparison.failures()) == 1


def test_the_first_failing_step_and_the_largest_difference() -> None:
    comparison = Comparison()
    for step, seen in ((1, 1.0), (2, 1.25), (3, 3.0)):
        comparison.number(step, "loss", seen=seen, expected=1.0, allowed=0.125)
    assert comparison.failures() == ["loss: is off by 0.25 at step 2, 2 times its bound"]
    assert "off by 2.0e+00 FAILED" in comparison.table()


def test_failures_are_ordered_by_step() -> None:
    comparison = Comparison()
    comparison.expect(["b", "a"])
    comparison.digest(2, "b", "weight", seen="1", expected="2")
    comparison.digest(1, "a", "weight", seen="1", expected=None)
    comparison.digest(1, "c", "weight", seen="1", expected="1")
    failures = comparison.failures()
    assert [failure.split(":")[0] for failure in failures] == ["a", "b"]
    assert [line.split()[0] for line in comparison.table().splitlines()[1:]] == ["b", "a", "c"]


def test_infinities_and_nans_equal_their_own_kind() -> None:
    comparison, failures = compared(
        [math.inf, -math.inf, math.nan, 1.5], [math.inf, -math.inf, math.nan, 1.0]
    )
    assert failures
    assert "off by 0.5 " in failures[0]
    assert not comparison.same_bits
    assert compared([-math.nan, math.inf], [math.nan, math.inf])[0].same_bits
    assert compared([math.inf], [-math.inf], [9.0])[1]
    assert compared([math.inf], [math.nan], [9.0])[1]


def test_an_infinite_bound_allows_any_value() -> None:
    assert not compared([math.inf, math.nan, 9.0], [1.0, math.inf, 1.0], [math.inf] * 3)[1]


def test_complex_numbers_differ_in_either_part() -> None:
    one, other = torch.tensor([1 + 1j]), torch.tensor([1 + 1.5j])
    for allowed, failures in ((0.1, 1), (1.0, 0)):
        comparison = Comparison()
        comparison.tensor(1, "weight", "gradient", seen=one, expected=other, allowed=torch.tensor([allowed]))
        assert len(comparison.failures()) == failures


def test_bound_of_compressed_sums_of_bfloat16() -> None:
    """The sum is rounded to bfloat16 in the launch once, and in the reference with every addition."""
    total = ReplicaSum(AveragingConfig(compression="fp16"), replicas=4)
    parts = [torch.tensor([number], dtype=torch.bfloat16) for number in (1.0, 2**-8, 2**-8, 2**-8)]
    for part in parts:
        total.add({"weight": part})
    launch = sum(part.half() for part in parts).bfloat16()
    assert (launch - total.result()["weight"]).abs() <= total.errors()["weight"]


def test_adasum_of_bfloat16_may_be_rounded_once() -> None:
    """The reference rounds after each pair, and Horovod at the end."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(64, generator=generator).bfloat16() for _ in range(4)]
    total = ReplicaSum(AveragingConfig(op="adasum"), replicas=4)
    for part in parts:
        total.add({"w": part})
    exact = ReplicaSum(AveragingConfig(op="adasum"), replicas=4)
    for part in parts:
        exact.add({"w": part.float()})
    once = exact.result()["w"].bfloat16()
    difference = (total.result()["w"] - once).abs()
    assert difference.max() > 0
    assert (difference <= total.errors()["w"]).all()
