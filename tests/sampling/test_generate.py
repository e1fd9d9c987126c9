"""Generation: as many tokens as needed, in order, and the same bytes however often it was stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL
from hypothesis import given
from hypothesis import strategies as st

from upft_mlx.data.problems import Problem, load_problems
from upft_mlx.dataset.build import build
from upft_mlx.dataset.prefix import Wanted, wanted
from upft_mlx.errors import ModelError
from upft_mlx.events import Event, Progress
from upft_mlx.models.load import Loaded, load
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import Solution, TrainingRow, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.generate import SamplingOrder, generate
from upft_mlx.sampling.sampler import Sampler

MakeRecipe = Callable[..., Recipe]


def problems(recipe: Recipe) -> list[Problem]:
    return load_problems(recipe.problems, builtin="train", limit=recipe.problems.limit)


def run(recipe: Recipe, loaded: Loaded, folder: Path) -> bytes:
    run_dir = RunDir(folder)
    generate(recipe, loaded, problems(recipe), wanted(recipe, len(problems(recipe))), run_dir)
    assert not run_dir.partial.exists()
    return run_dir.solutions.read_bytes()


def test_prefix_rows_are_decoded_to_the_prefix_and_full_rows_to_the_end(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    recipe = make_recipe()
    run(recipe, loaded, tmp_path)
    rows = list(read_rows(tmp_path / "solutions.jsonl", Solution))
    assert [row.problem_id for row in rows] == [problem.id for problem in problems(recipe)]
    full = [row for row in rows if row.kind == "full"]
    assert len(full) == 4
    assert all(len(row.completion_ids) <= 6 for row in rows if row.kind == "prefix")
    assert max(len(row.completion_ids) for row in full) > 10
    assert any(row.finish_reason == "stop" for row in full)
    assert all(loaded.eos_id not in row.completion_ids for row in rows)
    assert all(row.completion == loaded.tokenizer.decode(row.completion_ids) for row in rows)


def test_rows_end_in_the_token_that_the_model_sampled_whatever_the_tokenizer_calls_eos(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """The tokenizer's EOS is <|endoftext|>, as in many conversions; the model ends its turns with <|im_end|>."""
    shutil.copytree(MODEL, tmp_path / "model")
    settings = json.loads((MODEL / "tokenizer_config.json").read_text())
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|endoftext|>"}))
    loaded = load(tmp_path / "model")
    endoftext, im_end = (loaded.tokenizer.convert_tokens_to_ids(name) for name in ("<|endoftext|>", "<|im_end|>"))
    assert (loaded.tokenizer.eos_token_id, loaded.eos_id) == (endoftext, im_end)
    recipe = make_recipe(prefix={"eos": True, "structure_ratio": 0.5}, train={"valid_ratio": 0.0})
    run(recipe, loaded, tmp_path / "run")
    ended = [row for row in read_rows(tmp_path / "run" / "solutions.jsonl", Solution) if row.finish_reason == "stop"]
    cut = [row for row in read_rows(tmp_path / "run" / "solutions.jsonl", Solution) if row.finish_reason == "length"]
    assert len(ended) > 5
    assert {row.stop_id for row in ended} == {im_end}
    assert {row.stop_id for row in cut} == {None}
    build(recipe, loaded.tokenizer, problems(recipe), RunDir(tmp_path / "run"))
    rows = list(read_rows(RunDir(tmp_path / "run").train, TrainingRow))
    assert {row.kind for row in rows} == {"prefix", "structure"}
    assert {row.completion_ids[-1] for row in rows} == {im_end}


def test_progress_expects_the_tokens_that_come_though_long_solutions_come_first(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    recipe = make_recipe(problems={"limit": 40}, prefix={"length": 4, "structure_ratio": 0.5})
    events: list[Event] = []
    run_dir = RunDir(tmp_path)
    generate(recipe, loaded, problems(recipe), wanted(recipe, 40), run_dir, events.append)
    seen = [event for event in events if isinstance(event, Progress)]
    assert seen[0].tokens_left is None, "nobody knows yet"
    total = seen[-1].tokens
    halfway = next(event for event in seen if event.done >= 10)
    assert halfway.tokens_left == pytest.approx(total - halfway.tokens, rel=0.2)
    prefixes = next(event for event in seen if event.done == 20)
    assert prefixes.tokens_left == 20 * 4
    assert seen[-1].tokens_left == 0


def test_progress_counts_up_to_all_solutions_and_tokens(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    seen: list[Event] = []
    recipe = make_recipe()
    generate(recipe, loaded, problems(recipe), wanted(recipe, len(problems(recipe))), RunDir(tmp_path), seen.append)
    last = seen[-1]
    assert isinstance(last, Progress)
    assert (last.done, last.total) == (20, 20)
    assert last.tokens >= sum(len(r.completion_ids) for r in read_rows(tmp_path / "solutions.jsonl", Solution))


def test_a_file_cut_anywhere_is_continued_to_the_same_bytes(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    recipe = make_recipe()
    partial = b""

    def keep(event: Event) -> None:
        nonlocal partial
        path = tmp_path / "whole" / "solutions.partial.jsonl"
        partial = path.read_bytes() if path.exists() else partial

    folder = RunDir(tmp_path / "whole")
    generate(recipe, loaded, problems(recipe), wanted(recipe, len(problems(recipe))), folder, keep)
    whole = folder.solutions.read_bytes()
    assert sorted(partial.splitlines()) == sorted(whole.splitlines())
    assert partial != whole, "sampled in another order than that of the problems"
    for cut in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1, len(whole)):
        run_dir = RunDir(tmp_path / f"cut-{cut}")
        run_dir.root.mkdir()
        run_dir.partial.write_bytes(partial[:cut])
        assert run(recipe, loaded, run_dir.root) == whole, cut


def sampled(recipe: Recipe, loaded: Loaded, folder: Path, asked: Sequence[Problem] | None = None) -> list[Solution]:
    """The solutions of the recipe's problems, or of others, in their order."""
    asked = problems(recipe) if asked is None else asked
    run_dir = RunDir(folder)
    generate(recipe, loaded, asked, wanted(recipe, len(asked)), run_dir)
    return list(read_rows(run_dir.solutions, Solution))


def test_another_seed_samples_other_solutions_of_the_same_kind(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    """No full solutions: their share is drawn with the seed as well, which would hide that nothing else is."""
    first, other = (sampled(make_recipe(seed=seed, **HOT), loaded, tmp_path / str(seed)) for seed in (0, 1))
    assert [(row.problem_id, row.kind) for row in first] == [(row.problem_id, row.kind) for row in other]
    assert sum(a.completion_ids != b.completion_ids for a, b in zip(first, other, strict=True)) > 10


HOT = {"generate": {"temperature": 1.5, "batch_size": 2}, "prefix": {"structure_ratio": 0.0, "length": 8}}


def test_equal_questions_get_solutions_of_their_own(make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path) -> None:
    """One question asked 12 times, in three chunks of 4: with the same random numbers all would be the same."""
    asked = [Problem(str(i), "Ann has 3 apples and buys 4 more. How many apples does Ann have?") for i in range(12)]
    ids = [row.completion_ids for row in sampled(make_recipe(**HOT), loaded, tmp_path, asked)]
    chunks = [ids[start : start + 4] for start in (0, 4, 8)]
    assert chunks[0] != chunks[1] != chunks[2] != chunks[0]
    assert all(len({tuple(part) for part in chunk}) > 1 for chunk in chunks)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}])
def test_the_recipes_temperature_and_cuts_reach_the_sampler(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Each of them alone makes hot sampling greedy, whatever the seed."""
    asked = problems(make_recipe())[:6]
    greedy, cut = (
        sampled(make_recipe(seed=seed, generate=changes, prefix=HOT["prefix"]), loaded, tmp_path / str(seed), asked)
        for seed, changes in enumerate(({"temperature": 0.0}, {"temperature": 1.5, **settings}))
    )
    assert [row.completion_ids for row in cut] == [row.completion_ids for row in greedy]


def test_the_recipes_stop_texts_end_solutions(make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path) -> None:
    kept = {"prefix": {"structure_ratio": 1.0}, "problems": {"limit": 6}}
    whole = sampled(make_recipe(generate={"temperature": 0.0}, **kept), loaded, tmp_path / "whole")
    cut = sampled(make_recipe(generate={"temperature": 0.0, "stop": ["oxed"]}, **kept), loaded, tmp_path / "cut")
    assert any("oxed" in row.completion for row in whole)
    assert not any("oxed" in row.completion for row in cut)


def test_what_is_told_is_what_is_in_the_file(make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path) -> None:
    recipe, run_dir = make_recipe(), RunDir(tmp_path)
    found = generate(recipe, loaded, problems(recipe), wanted(recipe, 20), run_dir)
    rows = [json.loads(line) for line in run_dir.solutions.read_text().splitlines()]
    assert found.solutions == len(rows) == 20
    assert found.full == sum(row["kind"] == "full" for row in rows) == 4
    assert found.tokens_sampled == sum(len(row["completion_ids"]) for row in rows)
    assert found.tokens_processed > found.tokens_sampled


def test_log_probabilities_are_kept_where_the_selection_needs_them(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    few = {"problems": {"limit": 3}, "generate": {"samples": 2}}
    needed = sampled(make_recipe(prefix={"selection": "confidence"}, **few), loaded, tmp_path / "needed")
    assert all(row.logprob is not None and row.logprob < 0 for row in needed)
    others = sampled(make_recipe(prefix={"selection": "consensus"}, **few), loaded, tmp_path / "others")
    assert {row.logprob for row in others} == {None}


def test_sampling_never_sees_the_task_template(make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path) -> None:
    recipe = make_recipe(generate={"temperature": 0.0})
    other = make_recipe(generate={"temperature": 0.0}, prefix={"template": " Another template."})
    assert run(recipe, loaded, tmp_path / "a") == run(other, loaded, tmp_path / "b")


def test_a_model_without_chat_template_is_refused(make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path) -> None:
    class Bare:
        chat_template = None
        has_chat_template = False

    bare = Loaded(loaded.model, Bare(), loaded.config, loaded.path, loaded.dtype)
    with pytest.raises(ModelError, match="has no chat template"):
        run(make_recipe(), bare, tmp_path)


def items(spec: list[tuple[str, int]]) -> list[Wanted]:
    return [Wanted(number, kind, samples) for number, (kind, samples) in enumerate(spec)]  # type: ignore[arg-type]


SPECS = st.lists(st.tuples(st.sampled_from(["full", "prefix"]), st.integers(1, 5)), min_size=1, max_size=30)


@given(SPECS, st.integers(1, 6), st.data())
def test_a_plan_samples_everything_once_in_chunks_of_one_kind_the_long_ones_first(
    spec: list[tuple[str, int]], batch_size: int, data: st.DataObject
) -> None:
    wanted_ = items(spec)
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=len(spec), max_size=len(spec)))
    plan = SamplingOrder(wanted_, lengths, batch_size)
    chunks = [plan.chunk(number) for number in range(len(plan.sizes))]
    assert sorted(item.number for chunk in chunks for item in chunk) == list(range(len(spec)))
    assert plan.sizes == [sum(item.samples for item in chunk) for chunk in chunks]
    assert all(len({item.kind for item in chunk}) == 1 for chunk in chunks)
    order = [(item.kind == "prefix", -lengths[item.number]) for chunk in chunks for item in chunk]
    assert order == sorted(order)
    written = [(item.number, sample) for chunk in chunks for item in chunk for sample in range(item.samples)]
    arranged = [written[line] for line in plan.lines()]
    assert arranged == [(item.number, sample) for item in wanted_ for sample in range(item.samples)]


def test_a_run_killed_after_the_last_row_was_put_in_order_samples_nothing_again(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    whole = run(recipe, loaded, tmp_path)
    monkeypatch.setattr(Sampler, "sample", lambda *_: pytest.fail("sampled again"))
    assert run(recipe, loaded, tmp_path) == whole


def test_several_samples_stand_together_and_differ(make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path) -> None:
    recipe = make_recipe(
        generate={"samples": 6, "temperature": 1.0}, prefix={"selection": "consensus"}, problems={"limit": 10}
    )
    run(recipe, loaded, tmp_path)
    rows = list(read_rows(tmp_path / "solutions.jsonl", Solution))
    prefixes = [row for row in rows if row.kind == "prefix"]
    assert [row.sample for row in prefixes] == list(range(6)) * 8
    assert len({tuple(row.completion_ids) for row in prefixes[:6]}) > 1
    assert [row.sample for row in rows if row.kind == "full"] == [0, 0]
