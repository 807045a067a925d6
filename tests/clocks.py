"""``python -m tests.clocks``: the tests that know what time it is, at times at which they could go wrong.

The whole process and everything that it starts is told the time by ``faketime``; no setting of the product does.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

TIMES = (
    ("2026-11-26 00:05:00", "UTC", "five minutes after midnight: yesterday has not settled"),
    ("2026-11-25 23:58:00", "UTC", "two minutes before midnight"),
    ("2028-02-29 12:00:00", "UTC", "the 29th of February"),
    ("2026-12-31 23:30:00", "UTC", "the last hour of a year"),
    ("2026-10-25 01:30:00", "Europe/Berlin", "the hour that comes twice"),
    ("2026-03-29 03:30:00", "Australia/Lord_Howe", "a zone whose summer time is half an hour"),
)
FILES = ("tests/e2e", "tests/unit/test_plan.py", "tests/unit/test_window.py", "tests/unit/test_trend.py")

AT_MOST_SECONDS = 600


def main() -> int:
    """Run them all; 1 where any failed."""
    if shutil.which("faketime") is None:
        print("faketime is not installed: apt-get install faketime")
        return 1
    failed = 0
    for moment, zone, why in TIMES:
        clock = ["env", f"TZ={zone}", "faketime", "-f", f"@{moment}"]
        tests = [sys.executable, "-m", "pytest", "-n2", "-rfE", "-p", "no:cacheprovider", *sys.argv[1:], *FILES]
        try:
            done = subprocess.run(
                [*clock, *tests], capture_output=True, text=True, check=False, timeout=AT_MOST_SECONDS
            )
        except subprocess.TimeoutExpired:
            print(f"{moment}  {zone:<20} had not ended after {AT_MOST_SECONDS} s  ({why})", flush=True)
            failed += 1
            continue
        summary = re.findall(r"^.*(?:passed|failed).* in .*$", done.stdout, re.M)
        print(f"{moment}  {zone:<20} {summary[-1] if summary else done.stdout[-300:]}  ({why})", flush=True)
        for line in re.findall(r"^(?:FAILED|ERROR) .*$", done.stdout, re.M):
            print(f"    {line}", flush=True)
        failed += done.returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
