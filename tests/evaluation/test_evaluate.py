"""One benchmark: drafts and when they are used, the answers at another batch size, and stopping when it is known."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.base_and_tuned import write_adapter
from helpers.facts import result

from upft_mlx import pipeline
from upft_mlx.evaluation.benchmark_result import Rounding
from upft_mlx.evaluation.drafts import Drafts
from upft_mlx.evaluation.stats import ALPHA
from upft_mlx.evaluation.summary import rounding_summary
from upft_mlx.events import Event, Graded, Note
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.report import outcome
from upft_mlx.rows import EvaluationRow, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Completion
from upft_mlx.sampling.draw import Sampling
from upft_mlx.sampling.sampler import Sampler

MakeRecipe = Callable[..., Recipe]


def evaluated(recipe: Recipe, folder: Path, adapter: Path | None) -> tuple[dict[str, Any], list[str]]:
    """The summary's benchmarks, and the notes."""
    events: list[Event] = []
    pipeline.run_stage(recipe, folder, "evaluate", events.append, adapter)
    summary = json.loads((folder / "evaluation/summary.json").read_text())
    return summary["benchmarks"], [event.text for event in events if isinstance(event, Note)]


def rows(folder: Path, variant: str, label: str = "arithmetic") -> list[EvaluationRow]:
    return [*read_rows(RunDir(folder).rows_of(label, variant), EvaluationRow)]


def recipe_for(make_recipe: MakeRecipe, **fields: Any) -> Recipe:
    one = {"name": "arithmetic", "limit": 24, "samples": 2, "temperature": 0.7, **fields.pop("benchmark", {})}
    return make_recipe(evaluate={"benchmarks": [one], "batch_size": 8, "max_tokens": 40, **fields})


def made(tokens: int, accepted: int = 0) -> Completion:
    return Completion([7] * tokens, "length", accepted=accepted)


def test_drafts_are_tried_on_a_chunk_and_used_while_they_pay(loaded: Loaded) -> None:
    drafts = Drafts(loaded, (), "(withheld)")
    assert drafts.pay, "the first chunk is the trial"
    drafts.measured([made(100, accepted=80)], 1.0, drafted=True)
    assert not drafts.pay, "the second one is its other half where base's time is not known"
    drafts.measured([made(100)], 2.0, drafted=False)
    assert drafts.pay
    drafts.measured([made(100, accepted=0)], 4.0, drafted=True)
    assert not drafts.pay
    assert (drafts.drafted, drafts.accepted) == (200, 80)


def test_a_draft_is_what_base_said_in_this_process_or_its_text(loaded: Loaded) -> None:
    text = loaded.tokenizer.decode(loaded.tokenizer.encode("Mia has 4 pens."))
    row = EvaluationRow("a", 0, text, "4", "4", True, 5, "stop")
    drafts = Drafts(loaded, [row, EvaluationRow("b", 0, "(withheld)", "4", "4", True, 5, "stop")], "(withheld)")
    assert loaded.tokenizer.decode(drafts.of(("a", 0))[:-1]) == text
    assert drafts.of(("a", 0))[-1] == loaded.eos_id
    assert drafts.of(("b", 0)) == drafts.of(("c", 0)) == []
    drafts.learn([("a", 0), ("c", 0)], [made(3), Completion([8], "stop", stop_id=2)])
    assert (drafts.of(("a", 0)), drafts.of(("c", 0))) == ([7, 7, 7], [8, 2])


@pytest.mark.parametrize("earlier", [False, True])
def test_tuned_says_the_same_with_drafts_as_without_and_most_tokens_are_bases(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """Also where base was measured by an earlier process, so that its tokens are those of its text."""
    recipe, adapter = recipe_for(make_recipe), write_adapter(tmp_path / "adapter", size=0.02)
    monkeypatch.setattr(Drafts, "pay", property(lambda self: False))
    evaluated(recipe, tmp_path / "without", adapter)
    monkeypatch.setattr(Drafts, "pay", property(lambda self: True))
    if earlier:
        evaluated(recipe, tmp_path / "with", None)
    evaluated(recipe, tmp_path / "with", adapter)
    assert rows(tmp_path / "with", "base") == rows(tmp_path / "without", "base")
    assert rows(tmp_path / "with", "tuned") == rows(tmp_path / "without", "tuned")
    assert rows(tmp_path / "with", "tuned") != rows(tmp_path / "with", "base")
    entries = [RunDir(tmp_path / name).entry("evaluate") for name in ("with", "without")]
    accepted, none = (entry.detail for entry in entries if entry)
    kept = re.search(r"tuned kept (\d+) % of the tokens read from base's answers", accepted)
    assert kept is not None
    assert int(kept[1]) > 70
    assert "drafted" not in none


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_neither_limit_nor_batch_size_changes_a_row(
    make_recipe: MakeRecipe, tmp_path: Path, temperature: float
) -> None:
    fields = {"temperature": temperature, "samples": 2 if temperature else 1}
    found = {}
    for limit, size in ((24, 8), (24, 3), (10, 8)):
        recipe = recipe_for(make_recipe, benchmark={**fields, "limit": limit}, batch_size=size)
        evaluated(recipe, tmp_path / f"{limit}-{size}", None)
        found[limit, size] = rows(tmp_path / f"{limit}-{size}", "base")
    assert found[24, 3] == found[24, 8]
    assert found[10, 8] == found[24, 8][: len(found[10, 8])]
    assert len(found[10, 8]) == 10 * fields["samples"]


def test_how_solutions_are_drawn_does_not_change_how_answers_are(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """`compare` and `sweep` measure cells that sample solutions with another top-p with one and the same decoding."""
    recipe = recipe_for(make_recipe, benchmark={"limit": 6}, max_tokens=12)
    generate = recipe.generate.model_copy(update={"top_p": 0.1, "top_k": 1})
    evaluated(recipe, tmp_path / "plain" / "run", None)
    evaluated(recipe.model_copy(update={"generate": generate}), tmp_path / "narrow" / "run", None)
    assert rows(tmp_path / "plain" / "run", "base") == rows(tmp_path / "narrow" / "run", "base")


def test_base_is_asked_again_at_another_batch_size(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def noting(loaded: Loaded, sampling: Sampling) -> Sampler:
        sizes.append(sampling.batch_size)
        return Sampler(loaded, sampling)

    monkeypatch.setattr("upft_mlx.evaluation.evaluate.Sampler", noting)
    summary, notes = evaluated(recipe_for(make_recipe), tmp_path / "run", None)
    assert sizes == [8, 4]
    again = rows(tmp_path / "run", "again")
    assert len(again) == 2 * 3, "a tenth of 24 problems, rounded up, two samples each"
    assert summary["arithmetic"]["rounding"] == {"completions": 6, "texts": 0.0, "answers": 0.0, "grades": 0.0}
    assert (
        "arithmetic: 0.0 % of 6 answers of base, asked again at another batch size, change by rounding alone "
        "(0.0 % from right to wrong or back)"
    ) in notes


def test_what_rounding_changes_is_counted() -> None:
    def row(problem: str, answer: str, correct: bool, text: str = "x") -> EvaluationRow:
        return EvaluationRow(problem, 0, text, answer, "1", correct, 3, "stop")

    base = [[row("a", "1", True)], [row("b", "2", False)], [row("c", "3", False)], [row("d", "1", True)]]
    again = [row("a", "1", True, "y"), row("b", "1", True), row("c", "4", False), row("e", "1", True)]
    assert rounding_summary(base, again) == Rounding(completions=3, texts=1 / 3, answers=2 / 3, grades=1 / 3)


def test_it_stops_when_it_is_known_and_says_so(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """An adapter that breaks the model: far fewer problems than there are show it."""
    recipe = recipe_for(make_recipe, benchmark={"limit": 200, "samples": 1}, until="known")
    adapter = write_adapter(tmp_path / "adapter", size=1.0)
    summary, notes = evaluated(recipe, tmp_path / "run", adapter)
    variants = summary["arithmetic"]
    n = variants["base"]["n"]
    assert n < 100
    assert f"arithmetic: known after {n} of 200 problems" in notes
    assert outcome(result(variants))[0] == "worse"
    assert (variants["paired"]["until"], variants["paired"]["effect"]) == ("known", 0.02)
    base, tuned = rows(tmp_path / "run", "base"), rows(tmp_path / "run", "tuned")
    assert [row.problem_id for row in base] == [row.problem_id for row in tuned]
    assert len(base) == n == len({row.problem_id for row in base})
    evaluated(recipe_for(make_recipe, benchmark={"limit": 200, "samples": 1}, max_tokens=1), tmp_path / "all", None)
    first = {row.problem_id for row in rows(tmp_path / "all", "base")[:n]}
    assert {row.problem_id for row in base} != first, "in random order"
    again, _ = evaluated(recipe, tmp_path / "run", adapter)
    assert again == summary


def test_what_is_whole_already_is_shown_once(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = recipe_for(make_recipe, benchmark={"limit": 8, "samples": 1}, until="known", max_tokens=4)
    evaluated(recipe, tmp_path / "run", None)
    events: list[Event] = []
    adapter = write_adapter(tmp_path / "adapter", size=1.0)
    pipeline.run_stage(recipe, tmp_path / "run", "evaluate", events.append, adapter)
    shown = [event.problem_id for event in events if isinstance(event, Graded) and event.variant == "base"]
    assert len(shown) == len(set(shown)) == 8


@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_it_stops_by_the_verdict_with_what_rounding_changes(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, floor: float
) -> None:
    def changed(_base: Any, again: list[EvaluationRow]) -> Rounding:
        return Rounding(completions=len(again), texts=floor, answers=floor, grades=floor)

    for module in ("evaluate", "summary"):
        monkeypatch.setattr(f"upft_mlx.evaluation.{module}.rounding_summary", changed)
    recipe = recipe_for(make_recipe, benchmark={"limit": 80, "samples": 1}, until="known")
    summary, notes = evaluated(recipe, tmp_path / "run", write_adapter(tmp_path / "adapter", size=1.0))
    n = summary["arithmetic"]["base"]["n"]
    assert (summary["arithmetic"]["paired"]["p_value"] < ALPHA) == (floor == 0)
    assert [note for note in notes if "known after" in note] == (
        [] if floor else [f"arithmetic: known after {n} of 80 problems"]
    )
    assert (n == 80) == bool(floor)
    assert len(rows(tmp_path / "run", "again")) == math.ceil(n / 10)


def test_an_adapter_that_changes_nothing_is_known_not_to(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    benchmark = {"limit": 160, "samples": 1}
    recipe = recipe_for(make_recipe, benchmark=benchmark, until="known", effect=10.0, max_tokens=4)
    summary, _ = evaluated(recipe, tmp_path / "run", write_adapter(tmp_path / "adapter", size=0.0))
    low, high = summary["arithmetic"]["paired"]["ci95"]
    assert -0.1 <= low < 0 < high <= 0.1
    assert summary["arithmetic"]["base"]["n"] < 160


def test_what_is_not_known_goes_to_the_end_with_the_wider_interval(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    adapter, found = write_adapter(tmp_path / "adapter", size=0.02), {}
    for until in ("known", "end"):
        summary, notes = evaluated(recipe_for(make_recipe, until=until), tmp_path / until, adapter)
        found[until] = summary["arithmetic"]
        assert not [note for note in notes if "known after" in note]
    assert rows(tmp_path / "known", "tuned") == rows(tmp_path / "end", "tuned"), "the same problems, in the same order"
    for name in ("base", "tuned"):
        width = {until: variants[name]["ci95"][1] - variants[name]["ci95"][0] for until, variants in found.items()}
        assert width["known"] > width["end"]
    assert found["known"]["paired"]["ci95"] != found["end"]["paired"]["ci95"]
