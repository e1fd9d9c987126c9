"""How long report.html with 10,000 problems takes to open in a headless Chromium: python perf/report_page.py

Each time in a browser that has just started. Wall time from the address to the first frame and to the load event, which
the table is there before; processor time of all of the browser's processes until then, and of the page's own thread.
Seconds, median and worst. Wall time says nothing on a busy machine; needs Linux, and Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from helpers.browser import browser
from helpers.page import facts, many, written

from upft_mlx.results.page import Material

_SHOWN = """new Promise((yes) => requestAnimationFrame(() => setTimeout(() => {
    const load = performance.getEntriesByType("navigation")[0].loadEventEnd;
    const paint = performance.getEntriesByName("first-contentful-paint")[0].startTime;
    yes([paint / 1000, load / 1000, document.querySelectorAll("#rows tr").length]);
})))"""


NAMES = ("first frame", "loaded", "processors", "page's thread")


def taken() -> float:
    """Seconds of a processor that this process's children and theirs have taken so far."""
    of: dict[int, tuple[int, int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parts = path.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        of[int(path.parent.name)] = int(parts[1]), int(parts[11]) + int(parts[12])
    below, found = {os.getpid()}, 0
    while new := {pid for pid, (parent, _) in of.items() if parent in below} - below:
        below |= new
        found += sum(of[pid][1] for pid in new)
    return found / os.sysconf("SC_CLK_TCK")


def opened(address: str) -> tuple[float, float, float, float]:
    """Seconds of one opening: to the first frame, to the load event, of all processes, and of the page's thread."""
    with browser() as tab:
        tab.resize(1280, 900)
        tab.call("Performance.enable", timeDomain="threadTicks")
        before = taken()
        tab.open(address)
        paint, load, rows = tab.run(_SHOWN)
        assert rows >= 25, "the table is not there"
        metrics = {metric["name"]: metric["value"] for metric in tab.call("Performance.getMetrics")["metrics"]}
        return paint, load, taken() - before, metrics["TaskDuration"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        address = written(Path(folder), Material(facts(), many(10_000)))
        size = (Path(folder) / "report.html").stat().st_size
        times = [opened(address) for _ in range(options.runs)]
    print(f"{size / 1e6:.1f} MB, {options.runs} starts")
    for name, values in zip(NAMES, zip(*times, strict=True), strict=True):
        print(f"{name:15} median {statistics.median(values):.2f} s, worst {max(values):.2f} s")


if __name__ == "__main__":
    main()
