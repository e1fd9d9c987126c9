"""report.html: one file with the verdict, every problem with both answers, and how training went. Pure.

Nothing in it is loaded from anywhere: style and script stand in the page, and its policy (CSP) allows just those two by
their hashes. Texts of models and data reach it escaped by the template, or as JSON that the script sets as text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from upft_mlx import __version__
from upft_mlx.evaluation.benchmark_result import BenchmarkResult, Measured
from upft_mlx.evaluation.summary import difference
from upft_mlx.quantities import accuracy, duration, memory, p_value, percent, points
from upft_mlx.results import charts, openings
from upft_mlx.results.facts import RunFacts, Seen, StageFacts, TrainingFacts
from upft_mlx.results.report import headline, outcome
from upft_mlx.results.templates import FOLDER, html, script
from upft_mlx.rows import EvaluationRow

NBSP = "\u00a0"
"""A space at which no line is broken."""
TEXTS = 12_000_000
"""Bytes that the texts of all answers take at most; the page stays under 20 MB with everything else."""
SHORTEST = 200
"""Characters that each text keeps, however many there are."""
CHECKPOINTS = 60
"""Places of the running difference."""
ANSWERS = 4000
"""Answers of each variant in the tree of openings, at most, evenly spaced."""
TOKENS = 20_000
"""Tokens of all training rows that are shown."""
BEGIN = 300
"""Characters of an answer that hold its first pieces."""


@dataclass(frozen=True)
class Material:
    """What the page is made of."""

    facts: RunFacts
    """Those of report.md."""
    asked: Sequence[Seen] = ()
    """Every problem and sample of the benchmarks that may be shown."""
    withheld: Mapping[str, int] = field(default_factory=dict)
    """The private benchmarks, and how many problems each has."""
    preview: dict[str, Any] | None = None
    """Training rows token by token (`inspection.preview`)."""
    left_out: str = ""
    """Why they are not there, if that is not as it should be."""
    pieces: Callable[[str], Sequence[str]] = str.split
    """The first tokens of an answer's text; words where there is no tokenizer."""
    unit: str = "words"
    limit: tuple[int, str] | None = None
    """The bytes that a stage may take on this machine, and what they are."""
    date: str = ""


def page(found: Material) -> str:
    """The whole page."""
    facts = found.facts
    style, code = ((FOLDER / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    benchmarks = [_benchmark(name, result, found) for name, result in facts.benchmarks.items()]
    most = _room(
        [
            text
            for item in found.asked
            for text in [row.completion for row in (item.base, item.tuned) if row is not None]
        ]
    )
    training = list(_training(facts.training))
    examples = list(_examples(found.preview)) if found.preview else []
    begun = _openings(found)
    sections = {
        "result": ("Result", benchmarks),
        "problems": ("Every problem", found.asked),
        "openings": ("How answers begin", begun),
        "training": ("Training", training),
        "rows-trained": ("Training rows", examples),
        "cost": ("What it took", bool(facts.stages)),
    }
    return (
        html()
        .get_template("report.html")
        .render(
            facts=facts,
            headline=headline(facts.benchmarks),
            notes=[*facts.remarks, *([found.left_out] if found.left_out else [])],
            date=found.date,
            sections=[(name, title) for name, (title, there) in sections.items() if there],
            benchmarks=benchmarks,
            count=len(found.asked),
            withheld=list(found.withheld.items()),
            shortened=f"{most:,}" if most is not None else "",
            openings=begun,
            training=training,
            examples=examples,
            stages=[_stage(stage, found.limit) for stage in facts.stages],
            limit=f"{memory(found.limit[0])}, {found.limit[1]}" if found.limit else "",
            version=__version__,
            data=_data(found.asked, list(facts.benchmarks), most),
            style=style,
            code=code,
            style_hash=_hash(style),
            script_hash=_hash(code),
        )
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# The table of problems.


def _room(texts: Sequence[str]) -> int | None:
    """The characters that each text may keep so that all fit into `TEXTS`; None where they fit whole."""
    sizes = [len(script(text)) for text in texts]
    if sum(sizes) <= TEXTS:
        return None
    room, left = float(TEXTS), len(sizes)
    for size in sorted(sizes):  # the short ones leave room to the long ones
        if size * left > room:
            break
        room, left = room - size, left - 1
    per_character = sum(sizes) / max(1, sum(map(len, texts)))
    return max(SHORTEST, int(room / left / per_character))


def _data(asked: Sequence[Seen], names: Sequence[str], most: int | None) -> dict[str, Any]:
    """What the script reads; a row is a list, for the names would take half of the file."""
    places = {name: number for number, name in enumerate(names)}
    rows = [
        [
            places[item.benchmark],
            item.problem_id,
            item.sample,
            item.question,
            item.gold,
            item.level,
            item.subject,
            _variant(item.base, most),
            _variant(item.tuned, most),
        ]
        for item in asked
    ]
    return {"benchmarks": list(names), "rows": rows}


def _variant(row: EvaluationRow | None, most: int | None) -> list[Any] | None:
    """An answer as the script reads it; of a long text the beginning, and the end, where the answer is."""
    if row is None:
        return None
    text = row.completion
    if most is not None and len(text) > most:
        text = f"{text[: most // 2]}\n[... {len(text) - most:,} characters ...]\n{text[-(most - most // 2) :]}"
    return [int(row.correct), row.answer, row.tokens, int(row.finish_reason == "length"), text]


# A benchmark's card.


def _benchmark(name: str, result: BenchmarkResult, found: Material) -> dict[str, Any]:
    there = list(result.measured)
    mine = [item for item in found.asked if item.benchmark == name]
    lengths = [(s, [float(r.tokens) for i in mine if (r := getattr(i, s)) is not None]) for s in there]
    card = {
        "name": name,
        "variants": there,
        "rows": list(_numbers([*result.measured.values()])),
        "lengths": charts.histogram(f"{name}: length of the answers", lengths, "tokens"),
        "paired": result.paired,
        "css": "",
        "running": "",
    }
    if paired := result.paired:
        (said, why), (low, high) = outcome(result), paired.ci95
        widest = max(abs(bound) for one in found.facts.benchmarks.values() if one.paired for bound in one.paired.ci95)
        flips = f"{paired.gained:,} went from wrong to right, {paired.lost:,} from right to wrong"
        card |= {
            "css": said if said in ("better", "worse") else "",
            "delta": points(paired.delta),
            "ci": f"[{points(low)}, {points(high)}]",
            "p": p_value(paired.p_value),
            "interval": charts.interval(f"{name}: difference with its interval", paired.delta, low, high, widest),
            "said": f"{said}: {why}" if why else f"{said}: {flips}",
            "running": _running(name, mine, result),
        }
    return card


def _numbers(variants: Sequence[Measured]) -> Iterator[tuple[str, list[str]]]:
    first = variants[0]
    samples = f" x {first.samples}" if first.samples > 1 else ""
    drawn = f"T {first.temperature:g}" if first.temperature else "greedy"
    yield "problems", [f"{variant.n:,}{samples}, {drawn}" for variant in variants]
    told = [accuracy(variant.accuracy, variant.ci95).replace(" ", NBSP) for variant in variants]
    yield "accuracy", [text.replace(f"{NBSP}[", " [") for text in told]  # a narrow screen breaks it there alone
    for kind in ("pass", "maj"):
        at = max(first.at_k(kind), default=1)
        if at > 1:
            yield f"{kind}@{at}", [percent(variant.at_k(kind)[at]) for variant in variants]
    yield "tokens", [f"{variant.mean_tokens:.0f}" for variant in variants]
    yield "cut", [percent(variant.truncated) for variant in variants]
    if any(variant.answer_found is not None for variant in variants):
        yield "answered", [percent(1 if variant.answer_found is None else variant.answer_found) for variant in variants]


def _running(name: str, mine: Sequence[Seen], result: BenchmarkResult) -> str:
    """The difference over the first 10, 20, ... problems, with the interval of each: the last one is the result's."""
    assert result.paired
    both = [(item.base, item.tuned) for item in mine if item.base and item.tuned]
    problems = [[*pairs] for _, pairs in groupby(both, key=lambda pair: pair[0].problem_id)]
    base, tuned = ([[pair[place] for pair in pairs] for pairs in problems] for place in (0, 1))
    floor, until = result.rounding.grades if result.rounding else 0.0, result.paired.until
    stops = sorted({max(2, round(len(problems) * (place + 1) / CHECKPOINTS)) for place in range(CHECKPOINTS)})
    points, band = [], []
    for stop in (stop for stop in stops if len(problems) // 12 < stop <= len(problems)):  # the first few say nothing
        found = difference(base[:stop], tuned[:stop], floor, "known" if until == "known" else "end")
        points.append((float(stop), found.delta))
        band.append(found.ci95)
    label = f"{name}: tuned - base over the first problems"
    line = charts.Line("tuned - base", "base", points, band)
    return charts.lines(label, [line] if len(points) > 1 else [], "problems", lambda y: f"{100 * y:+.0f}", zero=True)


# How answers begin.


def _openings(found: Material) -> dict[str, Any] | None:
    variants = [
        [row for item in found.asked if (row := getattr(item, variant)) is not None] for variant in ("base", "tuned")
    ]
    chosen = [variant[:: -(-len(variant) // ANSWERS) or 1] for variant in variants]
    base, tuned = ([found.pieces(row.completion[:BEGIN])[: openings.DEPTH] for row in variant] for variant in chosen)
    branches = openings.tree(base, tuned)
    if not branches:
        return None
    least = percent(openings.LEAST, 0)
    return {"branches": branches, "base": len(base), "tuned": len(tuned), "unit": found.unit, "least": least}


# Training.


def _training(found: TrainingFacts) -> Iterator[tuple[str, str, str]]:
    """Title, what it shows, and the chart."""
    if losses := found.losses:
        curves = [_loss(losses, "fixed_loss", "fixed rows", "base"), _loss(losses, "valid_loss", "validation", "tuned")]
        chart = charts.lines("Loss while training", curves, "step", lambda y: f"{y:.4g}", zero=False)
        yield "Loss", "Nats. The same few training rows each time, and the validation rows.", chart
    if any("development_accuracy" in line for line in losses):
        curve = _loss(losses, "development_accuracy", "accuracy", "tuned")
        chart = charts.lines("Accuracy while training", [curve], "step", lambda y: percent(y, 0), zero=False)
        yield "Accuracy while training", "On validation problems, which are in no benchmark.", chart
    if view := found.base_view:
        curves = [
            _positions(kind, css, of.by_position)
            for (kind, of), css in zip(view.kinds.items(), ("base", "tuned", "other"), strict=False)
        ]
        chart = charts.lines("Surprise of base by position", curves, "token", lambda y: f"{y:.2g}", zero=True)
        yield "What base thinks of the rows", "Nats per token before training, by its position in the row.", chart
    if movement := found.movement:
        curve = _positions("KL", "other", movement.kl_by_position)
        chart = charts.lines("KL by position", [curve], "position after the prompt", lambda y: f"{y:.2g}", zero=True)
        where = f"{movement.prompts} {movement.source}"
        yield "How far tuned is from base", f"KL(base || tuned), nats, along base's answers to {where}.", chart


def _loss(losses: Sequence[Mapping[str, float]], name: str, shown: str, css: str) -> charts.Line:
    return charts.Line(shown, css, [(line["step"], line[name]) for line in losses if name in line])


def _positions(name: str, css: str, values: Sequence[float]) -> charts.Line:
    return charts.Line(name, css, [(float(place), value) for place, value in enumerate(values, start=1)])


def _examples(preview: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Training rows with a class for each token: supervised, EOS, shared; every other one is shaded (`b`)."""
    left, eos = TOKENS, set(preview["eos_ids"])
    for row in preview["rows"]:
        left -= len(row["ids"])
        if left < 0:
            return
        tokens = []
        for place, (token, on) in enumerate(zip(row["tokens"], row["supervised"], strict=True)):
            kind = (" eos" if row["ids"][place] in eos else " on") if on else " shared" if place < row["shared"] else ""
            tokens.append((f"{kind}{' b' if place % 2 else ''}", token.replace("\n", "↵"), "\n" in token))
        trained = sum(row["supervised"])
        about = {name: row[name] for name in ("id", "kind", "place")}
        yield {**about, "trained": trained, "masked": len(row["ids"]) - trained, "tokens": tokens}


def _stage(stage: StageFacts, limit: tuple[int, str] | None) -> dict[str, Any]:
    peak = stage.peak_memory_bytes
    share = peak / limit[0] if limit and peak else None
    return {
        "stage": stage.stage,
        "time": duration(stage.seconds),
        "sampled": f"{stage.tokens_sampled:,}" if stage.tokens_sampled else "",
        "trained": f"{stage.tokens_trained:,}" if stage.tokens_trained else "",
        "memory": memory(peak) if peak else "",
        "share": share,
        "percent": "" if share is None else percent(share, 0) if share >= 0.01 else "< 1 %",
        "detail": stage.detail,
    }
