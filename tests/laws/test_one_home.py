"""Each rule that two packages need has one home: what one does is what the other counts with."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import MODEL

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import most_supervised, prefix_ids, wanted
from upft_mlx.dataset.selection import prefix_key
from upft_mlx.evaluation.evaluate import SamplingOrder as EvaluationOrder
from upft_mlx.fusing.moments import _Watcher
from upft_mlx.inspection.preview import _Preview
from upft_mlx.machine.device import dense_bytes_limit
from upft_mlx.models import cpu_layers
from upft_mlx.models.architecture import read_architecture
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded, load
from upft_mlx.planning import budget, memory
from upft_mlx.planning.budget import MemoryPlan, this_machine
from upft_mlx.planning.lengths import Prompts, Solutions, measure_prompts
from upft_mlx.planning.memory import Machine
from upft_mlx.planning.plan import Estimate
from upft_mlx.recipe.schema import Prefix, Prompt, Quantize, Recipe
from upft_mlx.rows import Solution, TrainingRow, write_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.chunks import prompts_per_wave
from upft_mlx.sampling.decoding import Request
from upft_mlx.sampling.generate import SamplingOrder
from upft_mlx.sampling.prefill import Prefill
from upft_mlx.sampling.sampler import Sampler
from upft_mlx.studies.analyze import _Analyzer
from upft_mlx.training.batches import PAD_POSITIONS, Example, make_batch, shared_length, steps_from, to_examples
from upft_mlx.training.loss import choose_modes

EOS = 2


def plan(problems: int = 200) -> MemoryPlan:
    prompts = Prompts(problems, 40.0, [60], 5)
    return MemoryPlan(read_architecture(MODEL), prompts, prompts, solutions(), {(None, None): prompts}, this_machine())


def solutions() -> Solutions:
    return Solutions(mean=20.0, longest=30, trained=[30] * 64, ended=20.0, finished=1.0, how="assumed")


def loads(recipe: Recipe, problems: int, monkeypatch: pytest.MonkeyPatch) -> list[memory.SamplingLoad]:
    """What the memory plan takes each sampling for: generate's full solutions and prefixes, then evaluate's."""
    seen: list[memory.SamplingLoad] = []

    def peak(model: Any, load: memory.SamplingLoad, *rest: Any) -> float:
        seen.append(load)
        return 1.0

    monkeypatch.setattr(budget, "sampling_peak", peak)
    plan(problems).peaks(recipe)
    return seen


@pytest.mark.parametrize(("samples", "batch_size"), [(1, 4), (1, 32), (3, 8), (8, 4), (5, 16)])
def test_the_memory_plan_has_the_chunks_that_generate_and_evaluate_sample(
    make_recipe: Any, samples: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, Any] = {"samples": samples, "batch_size": batch_size}
    selection = "consensus" if samples > 1 else "first"
    recipe = make_recipe(
        generate=sizes,
        prefix={"selection": selection, "structure_ratio": 0.5},
        evaluate={**sizes, "temperature": 0.6},
    )
    full, prefix, _, evaluated = loads(recipe, 200, monkeypatch)
    order = SamplingOrder(wanted(recipe, 200), [1] * 200, batch_size)
    chunks = [order.chunk(number) for number in range(len(order.sizes))]
    largest = {kind: max(len(chunk) for chunk in chunks if chunk[0].kind == kind) for kind in ("full", "prefix")}
    assert (full.prompts, prefix.prompts) == (largest["full"], largest["prefix"])
    problems = [Problem(str(number), "?") for number in range(200)]
    assert evaluated.prompts == max(map(len, EvaluationOrder(problems, samples, batch_size).chunks))


@pytest.mark.parametrize(("samples", "batch_size"), [(1, 4), (1, 64), (3, 64), (8, 32), (64, 32)])
def test_the_memory_plan_has_the_waves_that_the_sampler_fills(
    samples: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler: Any = SimpleNamespace(
        prefill=SimpleNamespace(exact=False), sampling=SimpleNamespace(batch_size=batch_size)
    )
    requests = [Request([1], 9, samples) for _ in range(100)]
    largest = max(map(len, Sampler._waves(sampler, requests)))
    planned: list[int] = []

    def spied(*sizes: int) -> int:
        planned.append(prompts_per_wave(*sizes))
        return planned[-1]

    monkeypatch.setattr("upft_mlx.planning.memory.prompts_per_wave", spied)
    load = memory.SamplingLoad(batch_size, 100, samples, 9, 0, 9)
    memory.sampling_peak(read_architecture(MODEL), load, this_machine())
    assert planned == [largest]


def test_caches_grow_by_as_much_as_the_memory_plan_says() -> None:
    from mlx_lm.models.cache import KVCache

    assert KVCache.step == memory.CACHE_STEP


def test_moments_take_what_the_memory_plan_says() -> None:
    layer = nn.Linear(2048, 3)
    watcher = _Watcher(layer, 2048)
    watcher(mx.ones((1, 4, 2048)))
    assert sum(array.nbytes for array in watcher._sums) == 4 * 2048 * memory.MOMENTS_BLOCK


@pytest.mark.parametrize("eos", [False, True])
def test_a_prefix_row_has_as_many_tokens_as_the_plan_counts(make_recipe: Any, eos: bool) -> None:
    recipe = make_recipe(prefix={"structure_ratio": 0.0, "eos": eos}, train={"valid_ratio": 0.0})
    ids = prefix_ids(solution(9, "length"), recipe.prefix, EOS)
    whole, prefixes = plan().work(recipe)
    assert (whole.rows, prefixes.rows) == (0, 200)
    assert prefixes.supervised == prefixes.longest[0] == len(ids) == most_supervised(recipe.prefix)
    one = next(plan().passes(recipe))
    assert one.rows == PAD_POSITIONS * math.ceil(one.sequences * len(ids) / PAD_POSITIONS)


def solution(tokens: int, finish: Any) -> Solution:
    return Solution("p", 0, "prefix", list(range(10, 10 + tokens)), "text", finish)


@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize("tokens", range(8))
def test_all_agree_on_whether_a_solution_ended_inside_the_prefix(finish: Any, tokens: int, tmp_path: Path) -> None:
    length, one = 5, solution(tokens, finish)
    trained = prefix_ids(one, Prefix(length=length), EOS)
    ended = trained[-1:] == [EOS]
    assert ended == (finish == "stop" and tokens < length)
    assert prefix_key(one, length)[1] == ended
    run = RunDir(tmp_path)
    run.analysis.mkdir()
    write_rows(run.analysis / "prefixes.jsonl", [one])
    analyzer: Any = SimpleNamespace(settings=SimpleNamespace(lengths=(length,)), run=run)
    ((_, sampled),) = _Analyzer.prefix_ids(analyzer)
    assert (sampled[-1:] == [-1]) == ended


@pytest.mark.parametrize(("dropout", "checkpoint"), [(0.0, False), (0.1, False), (0.0, True), (0.1, True)])
def test_all_agree_on_when_shared_tokens_run_once(
    make_recipe: Any, loaded: Loaded, dropout: float, checkpoint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upft_mlx.training.batches.LEAST_SAVED", 0)
    recipe = make_recipe(lora={"dropout": dropout}, train={"grad_checkpoint": checkpoint})
    modes, reasons = choose_modes(loaded.model, dropout=dropout > 0, checkpoint=checkpoint)
    shared = not (dropout or checkpoint)
    assert modes.share == shared == (not reasons)
    assert all((one.shared > 0) == shared for one in plan().passes(recipe))
    row = TrainingRow("p/0", "p", 0, "prefix", "", "", [5, 6, 7], [8])
    preview: Any = SimpleNamespace(recipe=recipe, _renderer=SimpleNamespace(tokens=list))
    (shown,) = _Preview.shown(preview, SimpleNamespace(outline=[], rows=[(row, "")]))  # type: ignore[arg-type]
    assert (shown.shared > 0) == shared
    assert (plan().shared(recipe) > 0) == shared


def test_the_plan_takes_as_many_steps_as_training() -> None:
    examples = [Example(str(number), [1, 2, 3], 1) for number in range(10)]
    for epochs, batch_size in ((1, 4), (3, 4), (2, 5), (1, 16)):
        recipe: Any = SimpleNamespace(train=SimpleNamespace(steps=None, epochs=epochs, batch_size=batch_size))
        rows = SimpleNamespace(work=lambda _: [SimpleNamespace(rows=7.0), SimpleNamespace(rows=3.0)])
        estimate: Any = SimpleNamespace(memory=rows)
        planned = Estimate.steps(estimate, recipe)[0]
        steps = steps_from(examples, batch_size, 0, 0)
        assert planned == sum(1 for _ in itertools.takewhile(lambda step: step[0] <= epochs, steps))  # noqa: B023


def test_sampling_training_and_the_plan_find_the_same_shared_start() -> None:
    rng = random.Random(0)
    for _ in range(200):
        start = [rng.randint(0, 3) for _ in range(rng.randint(0, 6))]
        prompts = [[*start, *(rng.randint(0, 3) for _ in range(rng.randint(1, 4)))] for _ in range(rng.randint(2, 4))]
        prefill: Any = SimpleNamespace(
            _shared_ids=None, _model=SimpleNamespace(make_cache=list), _pass=lambda parts, caches: [parts[0]]
        )
        Prefill.share(prefill, prompts)
        trained = shared_length([Example("", [*ids, 5], len(ids)) for ids in prompts])
        renderer: Any = SimpleNamespace(ids=lambda text: [int(part) for part in text.split()])
        texts = [" ".join(map(str, ids)) for ids in prompts]
        planned = measure_prompts(len(texts), texts.__getitem__, renderer.ids).shared
        assert len(prefill._shared_ids) == trained == planned


def test_what_the_plan_takes_for_shared_is_what_a_run_shares(loaded: Loaded, tmp_path: Path) -> None:
    """On real prompts: the tokens that the sampler and the trainer run once are those that the plan leaves out."""
    renderer = Renderer(loaded.tokenizer, Prompt())
    questions = [f"{name} has {n} pens. How many?" for name in ("Ann", "Ben") for n in range(20)]
    planned = measure_prompts(len(questions), questions.__getitem__, renderer.ids)
    prompts = [renderer.ids(question) for question in questions]
    prefill = Prefill(loaded)
    prefill.share(prompts)
    rows = [TrainingRow(str(n), str(n), 0, "prefix", "", "", ids, [5, 6]) for n, ids in enumerate(prompts)]
    batch = make_batch(to_examples(rows, 100), shared_length(to_examples(rows, 100)))
    assert planned.shared == len(prefill._shared_ids or ()) == len(batch.shared) > 0
    alone = measure_prompts(1, questions.__getitem__, renderer.ids)
    assert alone.shared == 0, "one prompt is run whole: it is shared with nobody"


@pytest.mark.parametrize("room", [1.0, 0.5, 0.0], ids=["room for all", "room for half", "no room"])
def test_the_plan_counts_the_dense_copies_that_are_made(room: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of the copies that a loaded model holds on the CPU, of as many layers as there is room for."""
    quantize = Quantize(bits=4, group_size=32)
    model = read_architecture(MODEL, quantize)
    memory_size = 2**40 if room == 1.0 else int(4 * room * model.dense_bytes())  # a quarter of it may be taken
    monkeypatch.setattr(cpu_layers, "memory_bytes", lambda: memory_size)
    monkeypatch.setattr(cpu_layers, "blas", lambda: SimpleNamespace(is_fast=True))
    copies = []
    for _, layer in load(MODEL, quantize=quantize).model.named_modules():
        if isinstance(layer, cpu_layers.DenseHead):
            layer.as_linear(mx.zeros((1, layer.scales.shape[1] * layer.group_size)))  # its copy is made now
        if isinstance(layer, (cpu_layers.DenseHead, cpu_layers.DenseLinear)):
            (dense,) = (cell.cell_contents for cell in layer._product.__closure__ or ())
            copies.append(dense.nbytes)
    machine = Machine(is_gpu=False, dense_bytes=dense_bytes_limit(memory_size))
    planned = machine.weight_bytes(model, 4) - model.weight_bytes(4)
    largest = max(4 * matrix.size for matrix in model.matrices)
    assert sum(copies) <= planned <= sum(copies) + (0 if room in (0.0, 1.0) else largest)
    assert bool(copies) == bool(room)
