"""What is supervised, by hand: around the padding boundary, under truncation, with empty completions."""

from __future__ import annotations

import itertools
import tracemalloc
from array import array
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upft_mlx.recipe.schema import Prefix
from upft_mlx.rows import TrainingRow
from upft_mlx.training.batches import (
    PAD_POSITIONS,
    PAD_TOKENS,
    Example,
    StepCounts,
    count,
    epoch_order,
    make_batch,
    shared_length,
    split,
    steps_from,
    steps_per_epoch,
    to_examples,
)


def row(prompt: list[int], completion: list[int], kind: Any = "prefix") -> TrainingRow:
    return TrainingRow("r", "p", 0, kind, "", "", prompt, completion)


def supervised(batch: Any) -> list[tuple[int, int, int, Any]]:
    """(sequence, position read, id trained, weight) of every target with a weight."""
    length = batch.tokens.shape[1]
    return [
        (int(place) // length, int(place) % length, int(target), float(weight))
        for place, target, weight in zip(batch.positions, batch.targets, batch.weights, strict=True)
        if weight
    ]


def test_one_row_is_supervised_on_its_completion_alone() -> None:
    batch = make_batch([Example("a", [5, 6, 7, 8], start=2)])
    assert batch.tokens.tolist() == [[5, 6, 7, 0, 0, 0, 0, 0]]
    assert supervised(batch) == [(0, 1, 7, 0.5), (0, 2, 8, 0.5)]
    counts = count([Example("a", [5, 6, 7, 8], start=2)], [batch])
    assert counts == StepCounts(examples=1, supervised_tokens=2, processed_tokens=8, padding_tokens=5)


@pytest.mark.parametrize("inputs", [7, 8, 9])
def test_rows_around_the_padding_boundary_keep_their_targets(inputs: int) -> None:
    ids = list(range(10, 10 + inputs + 1))
    batch = make_batch([Example("a", ids, start=len(ids) - 3)])
    assert batch.tokens.shape == (1, 8 if inputs <= 8 else 16)
    assert supervised(batch) == [
        (0, inputs - 3, ids[-3], pytest.approx(1 / 3)),
        (0, inputs - 2, ids[-2], pytest.approx(1 / 3)),
        (0, inputs - 1, ids[-1], pytest.approx(1 / 3)),
    ]


def test_a_prefix_and_a_structure_row_weigh_the_same() -> None:
    batch = make_batch([Example("a", [5, 6, 7], start=2), Example("b", [1, 2, 3, 4, 9], start=1)])
    assert batch.tokens.tolist() == [[5, 6, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 0, 0, 0, 0]]
    assert supervised(batch) == [
        (0, 1, 7, 0.5),
        (1, 0, 2, 0.125),
        (1, 1, 3, 0.125),
        (1, 2, 4, 0.125),
        (1, 3, 9, 0.125),
    ]


def test_truncation_cuts_completions_and_leaves_out_rows_without_any() -> None:
    rows = [row([1, 2, 3], [4, 5, 6]), row([1, 2, 3, 4, 5], [6]), row([1], [])]
    assert to_examples(rows, max_length=5) == [Example("r", array("i", [1, 2, 3, 4, 5]), start=3, kind="prefix")]


def test_rows_are_read_one_by_one_and_an_id_takes_four_bytes() -> None:
    made = (row([1000 * n + i for i in range(300)], [1000 * n + i for i in range(700)]) for n in range(1, 51))
    tracemalloc.start()
    found = to_examples(made, max_length=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * sum(len(example.ids) for example in found)


def test_eos_is_supervised_when_it_is_among_the_completion_ids() -> None:
    with_eos, without = to_examples([row([1, 2], [7, 8, 0]), row([1, 2], [7, 8])], max_length=99)
    assert [target for *_, target, _ in supervised(make_batch([with_eos]))] == [7, 8, 0]
    assert [target for *_, target, _ in supervised(make_batch([without]))] == [7, 8]


examples = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 9)).map(
        lambda n: Example(f"{n}", list(range(1, n[0] + n[1] + 1)), start=n[0])
    ),
    min_size=1,
    max_size=7,
)


@given(examples)
def test_a_batch_supervises_each_completion_id_once_with_equal_weight_per_sequence(rows: list[Example]) -> None:
    batch = make_batch(rows)
    found = supervised(batch)
    for index, example in enumerate(rows):
        mine = [item for item in found if item[0] == index]
        assert [target for *_, target, _ in mine] == example.ids[example.start :]
        assert [position for _, position, _, _ in mine] == list(range(example.start - 1, len(example.ids) - 1))
        assert sum(weight for *_, weight in mine) == pytest.approx(1 / len(rows))
        assert batch.tokens[index].tolist()[: len(example.ids) - 1] == example.ids[:-1]
        assert not batch.tokens[index, len(example.ids) - 1 :].any()
    assert batch.tokens.shape[1] % PAD_TOKENS == 0
    assert len(batch.positions) % PAD_POSITIONS == 0
    assert np.isclose(batch.weights.sum(), 1)


@given(examples, st.integers(1, 4), st.integers(0, 3))
def test_an_epoch_holds_every_row_once_in_batches_of_like_length(
    rows: list[Example], batch_size: int, epoch: int
) -> None:
    batches = epoch_order(rows, batch_size, 0, epoch)
    assert sorted(itertools.chain(*batches)) == list(range(len(rows)))
    assert len(batches) == steps_per_epoch(len(rows), batch_size)
    spans = sorted((min(x), max(x)) for x in ([len(rows[i].ids) for i in b] for b in batches))
    assert all(high <= low for (_, high), (low, _) in itertools.pairwise(spans))
    sizes = [len(batch) for batch in batches]
    assert min(sizes) >= max(sizes) - 1, "a row weighs as much as any other"
    assert max(sizes) <= batch_size


def test_epochs_differ_in_composition_and_repeat_with_the_seed() -> None:
    rows = [Example(str(i), [1, 2, 3], 1) for i in range(32)]
    first, second = epoch_order(rows, 4, 0, 0), epoch_order(rows, 4, 0, 1)
    assert {frozenset(b) for b in first} != {frozenset(b) for b in second}
    assert first == epoch_order(rows, 4, 0, 0)
    assert first != epoch_order(rows, 4, 1, 0)


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 7])
def test_steps_continue_anywhere_as_if_never_stopped(start: int) -> None:
    rows = [Example(str(i), list(range(i + 2)), 1) for i in range(10)]
    whole = list(itertools.islice(steps_from(rows, 4, 0, 0), 9))
    assert list(itertools.islice(steps_from(rows, 4, 0, start), 9 - start)) == whole[start:]
    assert [epoch for epoch, _ in whole] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("seed", range(5))
def test_the_very_first_step_is_the_largest(seed: int) -> None:
    rows = [Example(str(i), list(range(2 + i % 9)), 1) for i in range(33)]
    rows.append(Example("longest", list(range(12)), 1))
    sizes = [len(batch) * max(len(rows[i].ids) for i in batch) for batch in epoch_order(rows, 4, seed, 0)]
    assert sizes[0] == max(sizes) == 48
    later = [epoch_order(rows, 4, seed, epoch) for epoch in range(1, 9)]
    assert any(max(len(rows[i].ids) for i in batches[0]) < 10 for batches in later), "later epochs are shuffled"


def test_what_all_rows_begin_with_is_shared_up_to_the_last_prompt_token() -> None:
    rows = [Example("a", [1, 2, 3, 4, 5], 4), Example("b", [1, 2, 3, 9, 5], 4)]
    assert shared_length(rows) == 3
    assert shared_length([*rows, Example("c", [1, 2, 3, 9], 3)]) == 2, "the token before the first supervised one stays"
    assert shared_length([*rows, Example("d", [7, 2, 3, 9], 3)]) == 0
    assert shared_length([Example("e", [1, 2], 1)]) == 0


def test_shared_tokens_are_taken_out_and_the_rows_read_move_with_them() -> None:
    batch = make_batch([Example("a", [5, 6, 7, 8], start=2), Example("b", [5, 3, 4], start=2)], shared=1)
    assert batch.shared.tolist() == [5]
    assert batch.tokens.tolist() == [[6, 7, 0, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 0]]
    assert supervised(batch) == [(0, 0, 7, 0.25), (0, 1, 8, 0.25), (1, 0, 4, 0.5)]


@given(examples, st.integers(1, 4) | st.none(), st.integers(0, 2), st.integers(0, 6))
def test_micro_batches_hold_the_same_targets_with_the_same_weights(
    rows: list[Example], size: int | None, wanted: int, least: int
) -> None:
    shared = min(wanted, shared_length(rows))
    with patch("upft_mlx.training.batches.LEAST_SAVED", least):
        parts = split(rows, size, shared)
    saved = [shared * (len(batch.tokens) - 1) for batch in parts]
    saved = [tokens if tokens >= least else 0 for tokens in saved]
    assert [batch.shared.size * (len(batch.tokens) - 1) for batch in parts] == saved, "shared where it saves enough"
    assert all(len(batch.tokens) <= (size or len(rows)) for batch in parts)
    found = sorted((target, round(weight, 6)) for batch in parts for *_, target, weight in supervised(batch))
    whole = sorted((target, round(weight, 6)) for *_, target, weight in supervised(make_batch(rows)))
    assert found == whole
    counts = count(rows, parts)
    assert counts.examples == len(rows)
    assert counts.supervised_tokens == sum(e.supervised for e in rows)
    assert counts.processed_tokens == sum(batch.tokens.size + batch.shared.size for batch in parts)
    assert counts.processed_tokens - counts.padding_tokens == sum(len(e.ids) - 1 for e in rows) - sum(saved)


def test_sorting_by_length_before_splitting_saves_padding() -> None:
    rows = [Example(str(i), list(range(60 if i % 2 else 9)), 1) for i in range(8)]
    assert count(rows, split(rows, 4)).padding_tokens == 4 * (64 - 59)
    assert count(rows, split(rows, 8)).padding_tokens == 4 * (64 - 59) + 4 * (64 - 8)


def test_where_no_size_is_given_as_many_sequences_pass_as_have_512_tokens_together() -> None:
    rows = [Example(str(i), [7, *range(length)], 1) for i, length in enumerate([600, 120, 120, 120, 120, 120, 64])]
    shapes = [batch.tokens.shape for batch in split(rows, None)]
    assert shapes == [(4, 120), (2, 120), (1, 600)]
    assert [batch.tokens.shape for batch in split(rows[1:6], None, shared=16)] == [(4, 104), (1, 120)]
    assert sum(float(batch.weights.sum()) for batch in split(rows, None)) == pytest.approx(1)


def test_the_last_id_may_weigh_less_and_the_row_weighs_the_same() -> None:
    """Weights 1, 1 and 0.5 of a row beside a whole one: 0.4, 0.4 and 0.2 of half the step."""
    rows = [row([4, 5], [7, 8, 9]), row([4, 5], [7])]
    prefix = Prefix(length=2, template="paper", eos=True, eos_weight=0.5)
    examples = to_examples(rows, 99, prefix)
    assert [example.eos for example in examples] == [True, False]
    (batch,) = split(examples, 2)
    assert batch.weights[:4].tolist() == pytest.approx([0.5, 0.2, 0.2, 0.1])
    assert to_examples(rows, 4, prefix)[0].last == 1.0, "what is cut off weighs nothing"


@pytest.mark.parametrize(
    ("kind", "ids", "eos", "weight"),
    [
        ("prefix", [1, 2, 3], True, 0.25),
        ("prefix", [1, 2], True, 1.0),  # ended before t: its own EOS
        ("prefix", [1, 2, 3], False, 1.0),
        ("structure", [1, 2, 3], True, 1.0),
    ],
)
def test_only_an_eos_after_a_prefix_is_weighed(kind: str, ids: list[int], eos: bool, weight: float) -> None:
    prefix = Prefix(length=2, template="paper", eos=eos, eos_weight=0.25)
    (example,) = to_examples([row([4], ids, kind)], 99, prefix)
    assert (example.last, example.kind, example.eos) == (weight, kind, weight < 1)
