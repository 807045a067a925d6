"""The benchmark's own rules: every figure is documented, a missed bar is said, and ratios come from one run."""

from __future__ import annotations

from pathlib import Path

from benchmarks.__main__ import SECTIONS
from benchmarks.document import page
from benchmarks.figures import Declared, median_ratio, table

PAGE = Path(__file__).parent.parent.parent / "docs" / "benchmarks.md"


def test_the_page_is_the_one_that_the_command_writes():
    written = PAGE.read_text().splitlines()
    for line in page([(name, figures) for name, (figures, _) in SECTIONS.items()], {}, {}).splitlines():
        expected = line.removesuffix(" — |") if line.startswith("| `") else line
        assert any(one.startswith(expected) for one in written), expected


def test_a_missed_bar_is_said():
    figures = (Declared("a", "ratio", "…", at_most=0.5), Declared("b", "ratio", "…", at_least=2.0))
    assert [line.endswith("MISSED") for line in table(figures, {"a": 0.4, "b": 1.0}).splitlines()] == [False, True]


def test_a_ratio_is_the_median_of_rounds_that_measure_both():
    limits, ours = iter([1.0, 10.0, 2.0]), iter([2.0, 20.0, 8.0])
    assert median_ratio(lambda: next(ours), lambda: next(limits)) == (2.0, [2.0, 2.0, 4.0])
