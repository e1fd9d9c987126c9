"""`python -m tests.campaign`: runs the parts, notes each case as a line of JSON, and goes on where it was cut.

python -m tests.campaign                              everything
python -m tests.campaign --part faults --minutes 10   a part, in an order drawn with --seed
python -m tests.campaign --table                      what was tried and what failed, as in docs/campaign.md
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from . import parts


def main() -> int:
    """Run what the command line asks for; 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=sorted(parts.PARTS), help="run this part; may be repeated")
    parser.add_argument("--minutes", type=float, default=1e9, help="for each part")
    parser.add_argument("--cases", type=int, default=10**9, help="of each part, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the order and of what is drawn")
    parser.add_argument("--worker", default="1/1", help="I/N: the I-th of N processes that share the cases")
    parser.add_argument("--out", type=Path, default=Path("campaign.jsonl"), help="a line for each case that was run")
    parser.add_argument("--table", action="store_true", help="print the table of what was run, run nothing")
    options = parser.parse_args()
    if not options.table:
        worker, workers = map(int, options.worker.split("/"))
        for name in options.part or parts.PARTS:
            with tempfile.TemporaryDirectory(prefix="upft-campaign-") as folder:
                cases = parts.PARTS[name](Path(folder), options.seed)
                mine = (case for number, case in enumerate(cases) if number % workers == worker - 1)
                run(name, mine, options.out, time.monotonic() + options.minutes * 60, options.cases)
    return table(options.out)


def run(part: str, cases: parts.Cases, out: Path, deadline: float, most: int) -> None:
    """The cases that have no line yet, until the time is up."""
    done, ran, failed = {line["case"] for line in lines(out) if line["part"] == part}, 0, 0
    for key, case, times in cases:
        if time.monotonic() > deadline or ran >= most:
            break
        if key in done:
            continue
        start, trouble = time.monotonic(), case()
        ran, failed = ran + 1, failed + bool(trouble)
        line = {
            "part": part,
            "case": key,
            "times": times,
            "failed": trouble,
            "seconds": round(time.monotonic() - start, 2),
        }
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if trouble:
            print(f"{part}: {key}: {trouble}", file=sys.stderr, flush=True)
    print(f"{part}: {ran} cases, {failed} failed", file=sys.stderr, flush=True)


def lines(out: Path) -> list[dict[str, Any]]:
    """What was noted."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def table(out: Path) -> int:
    """Print what was tried and failed, by part and kind."""
    tried, failed = Counter[str](), Counter[str]()
    for line in lines(out):
        group = f"{line['part']} | {line['case'].split(' : ')[0]}"
        tried[group] += line["times"]
        failed[group] += bool(line["failed"])
    print("| part | what | tried | failed |\n|---|---|---|---|")
    for group in tried:
        print(f"| {group} | {tried[group]:,} | {failed[group]} |")
    return 1 if sum(failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
