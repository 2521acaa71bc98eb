"""Data on real ranks: who opens files, and that workers, mixtures and streams change no bit."""

from pathlib import Path

import pytest

from tests.support.pools import Pools
from tests.support.runs import Finished
from tests.support.sentences import sentences
from tests.support.verifying import EQUAL, verify

pytestmark = pytest.mark.parallel


def test_stages_in_the_middle_open_no_tokens(pools: Pools, small: list[str], tmp_path: Path) -> None:
    overrides = [*small, "model.blocks=3", "layout.stages=4", "train.steps=2", "eval.every=1"]
    result = pools.run(4, overrides, tmp_path, module="tests.support.mapped").check()
    assert "opened: [True, False, False, True]" in result.out


@pytest.mark.parametrize(("ranks", "target"), [(2, "Numbered"), (4, "stream")])
def test_workers_change_nothing(ranks: int, target: str, pools: Pools, tmp_path: Path) -> None:
    overrides = [
        "experiment=none",
        "model=simplenet",
        "data=custom",
        f"data.target=tests.fixtures.reading:{target}",
        "layout.stages=2",
        "batch.global_size=14",
        "batch.micro_size=3",
        "threads=1",
        "device=cpu",
        "data.workers=1",
    ]
    result = verify(pools, ranks, overrides, tmp_path).check()
    assert f"{EQUAL} to the last bit" in result.out


def test_a_mixture(pools: Pools, small: list[str], tmp_path: Path) -> None:
    """The same bits in another layout, with workers, and after a stop in the middle."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(sentences(30_000).replace("The", name))
        (tmp_path / f"run_{name}").mkdir()
    mixture = f"data.mixture=[{{path: {tmp_path}/a, weight: 2}}, {{path: {tmp_path}/b}}]"
    overrides = ["data.path=null" if each.startswith("data.path=") else each for each in small]
    overrides += [mixture, "model.blocks=2", "eval.samples=8"]
    one, two = tmp_path / "run_a", tmp_path / "run_b"
    whole = pools.run(1, [*overrides, "train.steps=4"], one).check()
    for steps in (2, 4):
        last = pools.run(2, [*overrides, "data.workers=1", f"train.steps={steps}"], two).check()
    assert Finished(whole, one / "run").losses == Finished(last, two / "run").losses
