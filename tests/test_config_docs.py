"""docs/configuration.md is generated from the schema."""

from pathlib import Path

from trainer.config.compose import known_keys
from trainer.config.docs import PAGE, page
from trainer.config.registry import GROUPS

REPOSITORY = Path(__file__).parents[1]


def test_the_committed_page_is_generated() -> None:
    assert (REPOSITORY / PAGE).read_text() == page(), "run `make docs-config`"


def test_every_key_has_a_row() -> None:
    lines = [line for line in page().splitlines() if line.startswith("| `")]
    rows = {line.split("`")[1]: line for line in reversed(lines)}  # several choices may have a key
    chosen_by_group = {*GROUPS, *(f"{group}.name" for group in GROUPS)}
    assert set(known_keys()) - chosen_by_group <= set(rows)
    assert rows["model.dropout"].split(" | ")[1:4] == ["float", "`0.1`", "from 0 to below 1"]
    assert rows["data.context"].split(" | ")[2:4] == ["`${model.context}`", "greater than 0 (tokens)"]
    assert "`adasum`" in rows["averaging.op"]


def test_every_key_is_described() -> None:
    for line in page().splitlines():
        if line.startswith("| `"):
            assert line.split(" | ")[-1].strip(" |"), line
