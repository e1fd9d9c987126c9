"""Writes the measured tables of docs/use/choosing.md: python tools/make_defaults_table.py [RUNS]

RUNS is the runs.jsonl of choose_defaults.py; it is kept as docs/assets/defaults.json, from which the tables are made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from upft_mlx.evaluation.stats import paired_difference

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = ROOT / "docs" / "assets" / "defaults.json", ROOT / "docs" / "use" / "choosing.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"

FORMS = 3

Run = dict[str, Any]
HEAD = (
    "| asked | template | EOS | p | rate | greedy | T = 0.7 | tokens | cut | KL | same opening | same answer |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def page(runs: Sequence[Run]) -> str:
    """What stands between the marks."""
    import choose_defaults as study

    best = study.chosen(runs)
    first = [run for run in runs if run["seed"] == study.CHOOSE and run["setting"] is not None]
    ran = [run["setting"] for run in first]
    missing = [setting for setting in map(asdict, study.GRID) if setting not in ran]
    cuts = [{**asdict(study.MORE), "cut": cut} for cut in study.CUTS]
    parts = [
        _base_line(runs, [study.CHOOSE]),
        _table(runs, [study.CHOOSE], [asdict(s) for s in study.GRID if asdict(s) in ran], best),
        _missing(missing),
        f"Three other seeds, each with other problems. {_base_line(runs, study.REPORT)}",
        _table(runs, study.REPORT, [best, asdict(study.OLD), asdict(study.MORE)], best),
        f"Full solutions that were cut, at p = {study.MORE.ratio} and rate {_rate(study.MORE.rate)}; `max_tokens` was "
        f"{study.SHORT}, in the last line {study.MAX_TOKENS}:",
        _cut_table(runs, study.REPORT[:1], cuts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of(runs: Sequence[Run], seeds: Sequence[int], setting: Run | None) -> list[tuple[Run, Run]]:
    """The runs of a setting, each with its base."""
    bases = {run["seed"]: run for run in runs if run["setting"] is None}
    return [(bases[run["seed"]], run) for run in runs if run["seed"] in seeds and run["setting"] == setting]


def _base_line(runs: Sequence[Run], seeds: Sequence[int]) -> str:
    bases = [base for base, _ in _of(runs, seeds, None)]
    text = ", ".join(
        f"{name} {_mean([_share(base[kind]['right']) for base in bases]):.1%} right, "
        f"{_mean([base[kind]['tokens'] for base in bases]):.1f} tokens, "
        f"{_mean([base[kind]['cut'] for base in bases]):.1%} cut"
        for name, kind in (("greedy", "greedy"), ("at T = 0.7", "sampled"))
    )
    return f"Base on {len(bases) * len(bases[0]['greedy']['right'])} problems: {text}."


def _table(runs: Sequence[Run], seeds: Sequence[int], settings: Sequence[Run], best: Run) -> str:
    lines = [HEAD]
    for setting in settings:
        if pairs := _of(runs, seeds, setting):
            cells = [
                "same" if setting["same"] else "bare",
                *("yes" if setting[name] else "no" for name in ("template", "eos")),
                f"{setting['ratio']:g}",
                _rate(setting["rate"]),
                *_measured(pairs),
                *(f"{_mean([run['moved'][name] for _, run in pairs]):.0%}" for name in ("same_opening", "same_answer")),
            ]
            cells = [f"**{cell}**" for cell in cells] if setting == best else cells
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _measured(pairs: Sequence[tuple[Run, Run]]) -> Iterator[str]:
    """Accuracy against base, both ways; greedy length and cut answers; KL."""
    for kind in ("greedy", "sampled"):
        before, after = ([float(c) for pair in pairs for c in pair[place][kind]["right"]] for place in (0, 1))
        found = paired_difference(before, after)
        low, high = found.ci95
        yield f"{100 * found.delta:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    before, after = ([pair[place]["greedy"]["tokens"] for pair in pairs] for place in (0, 1))
    yield f"{_mean(after):.1f} ({_mean(after) / _mean(before) - 1:+.0%})"
    yield f"{_mean([run['greedy']['cut'] for _, run in pairs]):.1%}"
    yield f"{_mean([run['moved']['kl'] for _, run in pairs]):.3f}"


def _cut_table(runs: Sequence[Run], seeds: Sequence[int], settings: Sequence[Run]) -> str:
    lines = [
        "| full solutions that were cut | seeds | full rows | their tokens | greedy | T = 0.7 | tokens | cut | KL |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = {"": "none: longer `max_tokens`", "none": "no full solutions at all"}
    for setting in settings:
        if pairs := _of(runs, seeds, setting):
            rows = _mean([run["rows"]["structure"] for _, run in pairs])
            sizes = [run["structure_tokens"] for _, run in pairs if run["structure_tokens"] is not None]
            cells = [names.get(setting["cut"], setting["cut"]), str(len(pairs)), f"{rows:.1f}"]
            cells += [f"{_mean(sizes):.1f}" if sizes else "", *_measured(pairs)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _missing(settings: Sequence[Run]) -> str:
    """The settings that were not run, in words."""
    groups: dict[str, list[str]] = {}
    for s in settings:
        form = "template and EOS" if s["eos"] else "template" if s["template"] else "neither"
        where = f"{'same' if s['same'] else 'bare'}, p = {s['ratio']:g}, rate {_rate(s['rate'])}"
        groups.setdefault(where, []).append(form)
    if not groups:
        return ""
    shown = (where if len(forms) == FORMS else f"{where} ({', '.join(forms)})" for where, forms in groups.items())
    return f"Not run, for want of time: {'; '.join(shown)}. An EOS without a template is refused, so it was not tried."


def _rate(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-")


def _share(right: str) -> float:
    return right.count("1") / len(right)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def put(text: str, runs: Sequence[Run]) -> str:
    """The page with the tables between its marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + page(runs) + "\n" + END + rest.split(END)[1]


def main() -> None:
    """Keep the runs, if there are new ones, and write the tables."""
    if len(sys.argv) > 1:
        lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
        DATA.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    runs = json.loads(DATA.read_text(encoding="utf-8"))
    PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), runs), encoding="utf-8")


if __name__ == "__main__":
    main()
