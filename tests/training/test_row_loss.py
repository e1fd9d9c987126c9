"""The loss taken apart, by hand; and that training and preview measure the base and no other model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from helpers.facts import run_report
from helpers.input import assert_fails, upft
from hypothesis import given
from hypothesis import strategies as st

from upft_mlx import pipeline
from upft_mlx.dataset.build import Cut, cut_solutions
from upft_mlx.events import Note
from upft_mlx.inspection.preview import preview
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Recipe, Train
from upft_mlx.results.report import markdown
from upft_mlx.results.training_report import training_facts
from upft_mlx.rows import Solution, TrainingRow, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.same_logits import scalar
from upft_mlx.training.batches import Example, make_batch, shared_length, to_examples
from upft_mlx.training.loss import Modes, make_loss, to_arrays
from upft_mlx.training.row_loss import (
    EOS,
    FIXED,
    MEASURED,
    KindLoss,
    RowLoss,
    as_metrics,
    drawn,
    in_words,
    measured_again,
    taken_apart,
)
from upft_mlx.training.token_loss import token_losses

MakeRecipe = Callable[..., Recipe]


def example(name: str, supervised: int, kind: str, *, eos: bool = False, last: float = 1.0) -> Example:
    return Example(name, [1, *range(supervised)], 1, last, kind, eos)


def test_the_loss_is_taken_apart_by_kind_and_eos() -> None:
    """Three prefix rows (two measured) and one structure row: nats worked out by hand.

    Row losses: (1 + 3 + 8) / 3 = 4 of which EOS 8/3; (2 + 0 + 4) / 3 = 2 of which EOS 4/3; structure (1 + 1) / 2 = 1.
    The loss is 3/4 * 3 + 1/4 * 1 = 2.5: prefix 3/4 * 1 = 0.75, EOS 3/4 * 2 = 1.5, structure 0.25.
    """
    prefix = [example(name, 3, "prefix", eos=True) for name in "abc"]
    structure = example("s", 2, "structure")
    found = taken_apart([*prefix[:2], structure], [[1, 3, 8], [2, 0, 4], [1, 1]], [*prefix, structure])
    assert found.loss == pytest.approx(2.5)
    assert found.share == pytest.approx({"prefix": 0.3, EOS: 0.6, "structure": 0.1})
    assert found.eos == 6.0
    assert found.most == EOS
    assert found.kinds["prefix"] == KindLoss(3, 2, nats_per_token=1.5, first_token=1.5, by_position=[1.5, 1.5])
    assert found.kinds["structure"].by_position == [1.0, 1.0]
    assert as_metrics(found) == pytest.approx(
        {"fixed_loss": 2.5, "fixed_loss_prefix": 1.5, "fixed_loss_structure": 1.0, "fixed_loss_eos": 6.0}
    )
    lines = in_words(found)
    assert lines[0] == "prefix rows: 1.50 nats per token, 1.50 for the first; 30 % of the loss (2 of 3 rows measured)"
    assert lines[2] == "EOS after a prefix: 6.00 nats; 60 % of the loss"
    assert lines[3].startswith("over half of the loss is that EOS")


def test_an_eos_that_weighs_less_has_a_smaller_share() -> None:
    """(1 + 3 + 8 / 4) / (2 + 1 / 4) = 8 / 3, of which the EOS is (2 / 2.25) / (6 / 2.25) = a third."""
    found = taken_apart([example("a", 3, "prefix", eos=True, last=0.25)], [[1, 3, 8]], [example("a", 3, "prefix")])
    assert found.loss == pytest.approx(8 / 3)
    assert found.share == pytest.approx({"prefix": 2 / 3, EOS: 1 / 3})
    assert in_words(found)[-1] == "over half of the loss comes from prefix rows"


def test_rows_without_an_eos_have_none_and_one_kind_alone_is_not_named() -> None:
    found = taken_apart([example("a", 2, "prefix")], [[1, 3]], [example("a", 2, "prefix")] * 4)
    assert (found.loss, found.eos, found.most, found.share) == (2.0, None, None, {"prefix": 1.0})
    assert "fixed_loss_eos" not in as_metrics(found)
    assert len(in_words(found)) == 1


@given(st.integers(0, 60), st.integers(0, 30), st.integers(0, 5))
def test_the_fixed_rows_are_among_the_measured_ones_and_of_every_kind(prefix: int, structure: int, seed: int) -> None:
    rows = [example(f"p{n}", 2, "prefix") for n in range(prefix)]
    rows += [example(f"s{n}", 2, "structure") for n in range(structure)]
    measured, fixed = (drawn(rows, counts, seed) for counts in (MEASURED, FIXED))
    assert {e.id for e in fixed} <= {e.id for e in measured}
    for counts, found in ((MEASURED, measured), (FIXED, fixed)):
        assert sum(e.kind == "structure" for e in found) == min(structure, counts["structure"])
        assert len(found) == min(prefix, counts["prefix"]) + min(structure, counts["structure"])


def test_which_rows_are_drawn_depends_on_the_seed() -> None:
    rows = [example(f"p{n}", 2, "prefix") for n in range(200)]
    assert drawn(rows, FIXED, 0) == drawn(rows, FIXED, 0)
    assert drawn(rows, FIXED, 0) != drawn(rows, FIXED, 1)


def test_solutions_that_were_cut_are_counted_with_what_their_absence_does() -> None:
    rows = [("full", 10, "stop"), ("full", 20, "stop"), ("full", 60, "length"), ("prefix", 8, "length")]
    solutions = [Solution("p", n, kind, [0] * size, "", end) for n, (kind, size, end) in enumerate(rows)]  # type: ignore[arg-type]
    assert cut_solutions(solutions) == Cut(full=3, cut=1, mean_kept=15.0, mean_all=30.0)
    assert str(cut_solutions(solutions)) == (
        "1 of 3 full solutions reached generate.max_tokens, or were cut because they repeat themselves, and train "
        "nothing: those that do have 15 tokens on average, "
        "all at least 30"
    )
    assert str(cut_solutions(solutions[2:])).endswith(
        "1 of 1 full solution reached generate.max_tokens, or were cut because they repeat themselves, and train "
        "nothing"
    )


# With a model.


@pytest.mark.parametrize("share", [False, True])
def test_the_nats_are_those_of_the_training_loss(loaded: Loaded, share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several lengths, in no order: weighted as the trainer weighs them, they add up to its loss."""
    monkeypatch.setattr("upft_mlx.training.batches.LEAST_SAVED", 0)
    rows = [[1, 289, 201, 5, 6, 7], [1, 289, 201, 9], [1, 289, 201, 5, 6, 7, 8, 9, 10, 11, 12]]
    examples = [Example(str(n), ids, 3, 0.5 if n == 0 else 1.0) for n, ids in enumerate(rows)]
    modes = Modes(share=share)
    shared = shared_length(examples) if share else 0
    nats = token_losses(loaded.model, examples, modes, shared)
    assert [len(row) for row in nats] == [3, 1, 8]
    for one, row in zip(examples, nats, strict=True):
        expected = make_loss(loaded.model, modes)(*to_arrays(make_batch([one], shared)))
        weights = [1.0] * (len(row) - 1) + [one.last]
        mean = sum(w * n for w, n in zip(weights, row, strict=True)) / sum(weights)
        assert mean == pytest.approx(scalar(expected), rel=1e-5)


def lines_of(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, RunDir, list[str]]:
    """A run with EOS, at a learning rate that moves the adapter."""
    data = {
        "model": "builtin:arithmetic",
        "problems": {"builtin": "arithmetic", "limit": 40},
        "generate": {"max_tokens": 40, "batch_size": 8},
        "prefix": {"length": 6, "structure_ratio": 0.2, "template": "paper", "eos": True},
        "lora": {"rank": 4, "scale": 8.0},
        "train": {"batch_size": 4, "learning_rate": 1e-3, "report_every": 3},
    }
    recipe, run = Recipe.model_validate(data), RunDir(tmp_path_factory.mktemp("run") / "run")
    notes: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("upft_mlx.training.row_loss.SPARING", 0)  # each report measures
        for stage in ("generate", "build", "train"):
            pipeline.run_stage(
                recipe, run.root, stage, lambda event: notes.append(event.text) if isinstance(event, Note) else None
            )
    return recipe, run, notes


def test_the_fixed_rows_are_measured_only_after_enough_training() -> None:
    def steps(total: int, fixed: int, validates: bool = False, **settings: int) -> list[int]:
        train = Train.model_validate({"batch_size": 8, "report_every": 10, "validate_every": 15} | settings)
        return measured_again(train, total, fixed, validates)

    assert steps(60, 20) == [10, 20, 30, 40, 50, 60], "80 rows each"
    assert steps(60, 28) == [20, 30, 50, 60], "112 rows each, or later"
    assert steps(60, 28, True) == [15, 30, 45, 60], "validations are reported too"
    assert steps(12, 4, batch_size=16) == [*range(1, 11), 12], "as often as is reported"
    assert steps(1, 28) == [1]
    for fixed in range(1, 29):
        *before, _ = steps(500, fixed, batch_size=3, report_every=7)
        assert all(4 * fixed * count <= 3 * step for count, step in enumerate(before, start=1))


def test_training_says_first_what_the_base_thinks_and_preview_the_same(
    trained: tuple[Recipe, RunDir, list[str]],
) -> None:
    recipe, run, notes = trained
    written = json.loads(run.likelihood.read_text())
    shown = preview(recipe, run.root, model=True).base_view
    assert shown
    assert shown.loss == pytest.approx(written["loss"], rel=1e-4), "of the base, not of the tuned model"
    assert shown.share == pytest.approx(written["share"], rel=1e-4)
    assert written["share"][EOS] > 0.5
    assert [note for note in notes if note.startswith("before training")] == [
        f"before training, {line}" for line in in_words(RowLoss.load(written))
    ]
    kinds = [row.kind for row in read_rows(run.train, TrainingRow)]
    assert {kind: of["rows"] for kind, of in written["kinds"].items()} == {
        kind: kinds.count(kind) for kind in ("prefix", "structure")
    }


def test_the_loss_at_each_report_is_that_of_the_fixed_rows_after_the_step(
    trained: tuple[Recipe, RunDir, list[str]], fresh: Loaded
) -> None:
    recipe, run, _ = trained
    lines = lines_of(run)
    assert all(
        {"fixed_loss", "fixed_loss_prefix", "fixed_loss_structure", "fixed_loss_eos"} <= line.keys() for line in lines
    )
    examples = to_examples(list(read_rows(run.train, TrainingRow)), recipe.train.max_length, recipe.prefix)
    fixed = drawn(examples, FIXED, recipe.seed)
    base = taken_apart(fixed, token_losses(fresh.model, fixed, Modes(share=False)), examples)
    assert json.loads(run.likelihood.read_text())["fixed"] == pytest.approx(as_metrics(base), rel=1e-4)
    assert lines[-1]["fixed_loss"] < base.loss - 0.1
    from upft_mlx.models.adapters import load_adapter

    load_adapter(fresh, run.adapter)
    tuned = taken_apart(fixed, token_losses(fresh.model, fixed, Modes(share=False)), examples)
    best = min((line for line in lines if "valid_loss" in line), key=lambda line: line["valid_loss"])
    assert best["fixed_loss"] == pytest.approx(tuned.loss, rel=1e-4)


def test_where_nothing_is_learned_the_curve_is_flat_whatever_the_batches_say(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """The first batch is the largest, of whole solutions: its loss is not that of the others."""
    recipe = make_recipe(prefix={"eos": True}, train={"learning_rate": 1e-12, "report_every": 1, "warmup_ratio": 0.0})
    for stage in ("generate", "build", "train"):
        pipeline.run_stage(recipe, tmp_path, stage)
    lines = lines_of(RunDir(tmp_path))
    batches, fixed = ([line[name] for line in lines if name in line] for name in ("loss", "fixed_loss"))
    assert len(lines) >= 4
    assert max(batches) > 1.5 * min(batches)
    facts = training_facts(RunDir(tmp_path), ("generate", "build", "train"))
    rows = sum(view.measured for view in facts.base_view.kinds.values()) if facts.base_view else 0
    measured = measured_again(recipe.train, len(lines), rows, validates=True)
    assert [line["step"] for line in lines if "fixed_loss" in line] == measured, "all rows are fixed ones"
    assert [line["step"] for line in facts.losses] == [0, *measured]
    assert [line["fixed_loss"] for line in facts.losses] == pytest.approx([fixed[0]] * (1 + len(fixed)), rel=1e-5)
    text = markdown(run_report({"training": facts}))
    assert "| step | fixed rows | prefix | structure | EOS | validation |" in text
    assert f"| 0 | {fixed[0]:.3f} |" in text


def test_a_loss_that_is_nan_or_null_is_left_out_of_the_facts(tmp_path: Path) -> None:
    """Earlier versions wrote NaN to metrics.jsonl, which is not JSON; `upft show --json` printed it too."""
    run = RunDir(tmp_path)
    lines = ['{"step": 1, "loss": 2.0, "fixed_loss": 1.5, "valid_loss": NaN}', '{"step": 2, "valid_loss": null}']
    run.metrics.write_text("\n".join(lines))
    facts = training_facts(run, ("train",))
    assert facts.losses == [{"step": 1, "fixed_loss": 1.5}]


def test_a_model_that_was_asked_for_its_view_trains_on_as_before(loaded: Loaded) -> None:
    """Dropout is off while it is asked and on again after."""
    loaded.model.train()
    token_losses(loaded.model, [example("a", 3, "prefix")], Modes(share=False))
    assert loaded.model.training
    loaded.model.eval()
    token_losses(loaded.model, [example("a", 3, "prefix")], Modes(share=False))
    assert not loaded.model.training
    mx.eval(loaded.model.parameters())


def test_without_solutions_there_is_nothing_to_think_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_fails(upft("preview", "quickstart", "--model"), 1, "no solutions of this recipe yet", "upft generate")


def test_cut_solutions_are_in_the_report(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(generate={"max_tokens": 12}, prefix={"structure_ratio": 0.4})
    told: list[str] = []
    for stage in ("generate", "build"):
        facts = pipeline.run_stage(recipe, tmp_path, stage, lambda event: told.append(getattr(event, "text", "")))
    full = [s for s in read_rows(RunDir(tmp_path).solutions, Solution) if s.kind == "full"]
    cut = sum(s.finish_reason == "length" for s in full)
    assert cut > 0
    text = f"{cut} of {len(full)} full solutions reached generate.max_tokens, or were cut because they repeat"
    assert any(line.startswith(text) for line in told)
    assert facts.training.cut_solutions
    assert facts.training.cut_solutions.text.startswith(text)
    assert text in RunDir(tmp_path).report.read_text()
