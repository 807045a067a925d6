"""A minute of ``make soak``."""

from __future__ import annotations

import os

from tests import soak


def test_a_minute_under_load_with_upstreams_that_come_and_go():
    report = soak.run(float(os.environ.get("SOAK_SECONDS", "20")))
    assert not report.problems, "\n".join(report.problems[:10])
    assert report.answers["200"] > 200 and len(report.answers) > 2, report.answers
