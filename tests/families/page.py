"""docs/families.md: every family, and what came of it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.families.ranks import EQUAL, WAYS

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
STAGES = (1, 2, 4)
_PAGE = """# Families of models

`python -m tests.families` repeats this comparison and writes this page, for the families of causal and masked
models of transformers {version}. A small random model of four blocks, or about that, runs with
[`model=hf`](any-module.md#hugging-faces-models) on 1, 2 and 4 ranks, without dropout, with a padded batch and
without padding. The logits of an evaluation, and the logits and all gradients of a step of training, are
compared with those of the same model as transformers alone runs it.

## Equal to the bit

In these {equal} families all of them are, for each number of stages:

| family | unpadded: 1, 2, 4 stages | padded: 1, 2, 4 stages |
| --- | --- | --- |
{rows}

## The others

| family | outcome |
| --- | --- |
{others}

## Not tried

For these no small model was made that transformers itself runs: {untried}.{waiting}
"""


def page(outcomes: Mapping[str, str], untried: Mapping[str, str], known: Iterable[str], version: str) -> str:
    """Return the page.

    Args:
        outcomes: By "family way stages".
        untried: Why there is no small model, by family.
        known: All families.
        version: Of transformers.
    """
    by_family: dict[str, dict[str, str]] = {}
    for case, outcome in outcomes.items():
        by_family.setdefault(case.partition(" ")[0], {})[case.partition(" ")[2]] = outcome
    rows, others = [], []
    for family, found in sorted(by_family.items()):
        kinds = {way: [found.get(f"{way} {number}", "not run") for number in STAGES] for way in WAYS}
        if all(outcome == EQUAL for each in kinds.values() for outcome in each):
            rows.append(f"| {family} | {' | '.join(', '.join(each) for each in kinds.values())} |")
        else:
            others.append(f"| {family} | {_words(kinds)} |")
    names = ", ".join(f"{family} ({_short(why)})" for family, why in sorted(untried.items()))
    waiting = sorted(set(known) - by_family.keys() - untried.keys())
    return _PAGE.format(
        version=version,
        equal=len(rows),
        rows="\n".join(rows),
        others="\n".join(others),
        untried=names or "none",
        waiting=f"\n\nNot compared yet: {', '.join(waiting)}." if waiting else "",
    )


def listed_as_equal() -> list[str]:
    """Return the families that the page lists as equal."""
    _, _, rest = PAGE.read_text().partition("## Equal to the bit")
    rows = rest.partition("## The others")[0].splitlines()
    return [row.split("|")[1].strip() for row in rows if f"{EQUAL}, {EQUAL}, {EQUAL}" in row]


def _words(kinds: Mapping[str, list[str]]) -> str:
    """Return outcomes in one line, each once."""
    each = {way: "; ".join(dict.fromkeys(found)) for way, found in kinds.items()}
    first, *rest = each.values()
    text = first if all(other == first for other in rest) else "; ".join(f"{w}: {o}" for w, o in each.items())
    return text.replace("|", "\\|")


def _short(why: str) -> str:
    return why.removeprefix("no small model: ").replace("`", "'")[:60]
