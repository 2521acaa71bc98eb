"""Families of transformers on real ranks; `python -m tests.families` compares all that there are."""

import json
from pathlib import Path

import pytest

from tests.families.configurations import small_folder
from tests.families.page import listed_as_equal
from tests.families.ranks import EQUAL, OUTCOMES, OVERRIDES
from tests.support.pools import Pools

pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.parallel

UNUSUAL = ("gemma2", "mpnet")  # two kinds of masks; positions that all blocks get, made once


def test_families_of_the_page(pools: Pools, tmp_path: Path) -> None:
    root = tmp_path / "models"
    for family in (*UNUSUAL, "albert"):
        assert small_folder(family, root) is None
    overrides = [*OVERRIDES, f"model.path={root}", "layout.stages=2"]
    pools.run(2, overrides, tmp_path, module="tests.families.ranks").check()
    outcomes = json.loads((root / OUTCOMES).read_text())
    for family in UNUSUAL:
        assert family in listed_as_equal()
        cases = [f"{family} {way} {stages}" for way in ("unpadded", "padded") for stages in (1, 2)]
        assert [outcomes[case] for case in cases] == [EQUAL] * 4
    assert outcomes["albert padded 2"].startswith("refused: model.blocks=auto found no list of blocks")
