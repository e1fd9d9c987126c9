"""What a recipe's fields do to a run is in its plan: planned tokens, steps and memory beside those of the ledger."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL

from upft_mlx.pipeline import plan_recipe, prepare, run_stage
from upft_mlx.planning.budget import changed
from upft_mlx.planning.lengths import of_lengths
from upft_mlx.planning.memory import Machine
from upft_mlx.planning.plan import memory_plan
from upft_mlx.planning.speed import Speed
from upft_mlx.recipe.fields import AUTO
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import LedgerEntry, RunDir


def recipe(**changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "name": "planned",
        "model": "builtin:arithmetic",
        "problems": {"builtin": "arithmetic", "limit": 40},
        "generate": {"max_tokens": 64},
        "prefix": {"length": 8},
        "train": {"batch_size": 32},
        "evaluate": {"benchmarks": []},
    }
    for section, value in changes.items():
        data[section] = {**data[section], **value} if isinstance(value, dict) and section in data else value
    return Recipe.model_validate(data)


def ran(given: Recipe, root: Path, *stages: str) -> dict[str, LedgerEntry]:
    """The ledger of these stages."""
    for stage in stages:
        run_stage(given, root, stage)
    return {stage: entry for stage in stages if (entry := RunDir(root).entry(stage)) is not None}


FIELDS: dict[str, dict[str, Any]] = {
    "steps of whole and of part batches": {"train": {"steps": 4}},
    "steps of fewer rows than a batch has": {"train": {"steps": 2, "batch_size": 64}},
    "epochs": {"train": {"epochs": 2}},
    "rows that are cut": {"method": "sft", "train": {"max_length": 60}},
    "rows that are held out": {"train": {"valid_ratio": 0.5}},
    "prefixes that are cut": {"prefix": {"length": 16}, "train": {"max_length": 38}},
    "prefixes longer than solutions": {"prefix": {"length": 48}},
    "solutions of which some are cut": {"method": "sft", "generate": {"max_tokens": 30}},
}


@pytest.mark.parametrize("name", FIELDS)
def test_planned_tokens_are_those_of_the_ledger(name: str, tmp_path: Path) -> None:
    """Up to half more was planned where steps see rows several times, or where rows are shorter than they may be."""
    given = recipe(**FIELDS[name])
    ledger = ran(given, tmp_path, "generate", "build", "train")
    planned = plan_recipe(given, tmp_path, calibrates=False)  # how long solutions are is known by now
    assert planned.tokens.this.tokens_sampled == pytest.approx(ledger["generate"].tokens_sampled, rel=0.1)
    assert planned.tokens.this.tokens_trained == pytest.approx(ledger["train"].tokens_trained, rel=0.1)
    assert ledger["train"].detail.startswith(f"{planned.steps} step")
    run = RunDir(tmp_path)
    rows = sum(path.stat().st_size for path in (run.solutions, run.train, run.valid))
    adapter = sum(path.stat().st_size for path in run.adapter.rglob("*") if path.is_file())
    assert planned.disk_bytes["rows"] == pytest.approx(rows, rel=0.3), "prompts included"
    assert planned.disk_bytes["adapter and checkpoints"] == pytest.approx(adapter, rel=0.1), "few steps make one alone"


def test_a_model_that_is_quantized_here_is_downloaded_whole(tmp_path: Path) -> None:
    """The plan gave its quantized size, a quarter of the download."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization", None)
    (folder / "config.json").write_text(json.dumps(config))
    given = recipe(model=str(folder), prompt={"instruction": "{question}"}, quantize={"bits": 4, "group_size": 32})
    planned = plan_recipe(given, tmp_path / "run", calibrates=False)
    assert planned.disk_bytes["model to download"] == pytest.approx(2 * planned.parameters, rel=0.01)


def test_what_is_sampled_while_training_is_in_its_peak(tmp_path: Path) -> None:
    """Full solutions that say how training goes took five times the memory of the planned steps."""
    train = {"batch_size": 1, "steps": 1, "evaluate_every": 1, "valid_ratio": 0.45, "save": "last"}
    given = recipe(problems={"limit": 160}, generate={"batch_size": 64}, train=train)
    measured = ran(given, tmp_path, "generate", "build", "train")["train"].peak_memory_bytes
    job = prepare(given, tmp_path)
    plan = memory_plan(job, Machine(is_gpu=False))

    def peak(**fields: Any) -> float:
        return plan.peak("train", changed(job.recipe, {f"train.{name}": value for name, value in fields.items()}))

    assert peak() == pytest.approx(measured, rel=0.15)
    assert peak(evaluate_every=None) < 0.3 * measured
    small = Machine(is_gpu=False, bytes=round(0.5 * peak()), what="a small machine")
    [(line, _)] = replace(plan, machine=small).too_large(job.recipe, ["train"])
    assert line.endswith("with --set train.evaluate_limit=16"), line
    auto = changed(job.recipe, {"train.batch_size": 16, "train.micro_batch_size": AUTO})
    size = replace(plan, machine=small).settle(auto).train.micro_batch_size
    assert isinstance(size, int)
    with_it, twice = (peak(batch_size=16, micro_batch_size=n * size, evaluate_every=None) for n in (1, 2))
    assert with_it <= peak() < twice, "a smaller one would save nothing beside the solutions"


FOUR, HALF = {"generate": {"samples": 4}}, "assumed: half of generate.max_tokens"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "rft", **FOUR}, f"{HALF}, all correct"),
        ({"prefix": {"selection": "label", "structure_ratio": 0}, **FOUR}, f"{HALF}, all correct"),
        ({"prefix": {"selection": "longest", "structure_ratio": 0}, **FOUR}, HALF),
        ({"prefix": {"structure_ratio": 0}}, "prefixes alone"),
    ],
)
def test_a_plan_says_what_its_tokens_assume(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Prefixes of whole solutions were `prefixes alone`, and nothing said that RFT keeps as if all were right."""
    assert plan_recipe(recipe(**fields), tmp_path, mac=16).tokens.this.how == said


def test_validation_takes_the_time_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems were counted, of which RFT has up to four rows each."""
    fast = Speed(0.0, 1.0, 0.01, 1.0, of_lengths([(8, True)], "known"))
    monkeypatch.setattr("upft_mlx.pipeline.known", lambda _: fast)

    def validation(method: str) -> float:
        seconds = []
        for every in (1, 4):
            given = recipe(method=method, generate={"samples": 4 if method == "rft" else 1}, train={"steps": 4})
            found = plan_recipe(given.having("train", validate_every=every), tmp_path).seconds or {}
            seconds.append(found["train"])
        return seconds[0] - seconds[1]

    assert validation("rft") == pytest.approx(4 * validation("sft"))


@pytest.mark.parametrize("form", ["base", "mixed"])
def test_a_fused_model_has_the_planned_size(form: str, tmp_path: Path) -> None:
    """Half more was planned at the base's own bits, and less than 8 bits take."""
    publish = {"fuse": form, "min_retained": 0}
    given = recipe(model=str(MODEL), quantize={"bits": 4, "group_size": 32}, publish=publish, train={"steps": 1})
    planned = plan_recipe(given, tmp_path, mac=16).disk_bytes["fused model"]
    ran(given, tmp_path, "generate", "build", "train", "fuse")
    size = sum(path.stat().st_size for path in RunDir(tmp_path).fused.glob("*.safetensors"))
    assert planned == pytest.approx(size, rel=0.1)


def test_a_comparison_takes_what_its_cells_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base's answers were left out, and methods with solutions of their own were taken to share them."""
    fast = Speed(0.0, 1.0, 0.01, 1e-9, of_lengths([(8, True)], "known"))
    monkeypatch.setattr("upft_mlx.pipeline.known", lambda _: fast)

    def planned(
        *methods: str, seeds: int = 1, temperature: float = 0.0, **fields: Any
    ) -> tuple[float, dict[str, float]]:
        sets = {"benchmarks": [{"name": "arithmetic", "limit": 40, "temperature": temperature}]}
        studied = {"methods": methods, "seeds": seeds, "samples": 4}
        whole = {"evaluate": sets, "compare": studied, "publish": {"fuse": "adapter"}, "method": "sft", **fields}
        found = plan_recipe(recipe(**whole), tmp_path)
        return (found.other_seconds or {})["compare"], found.seconds or {}

    one, run = planned("sft")
    base = run["evaluate"] / 2
    assert one == pytest.approx(sum(run.values())), "base, and one method on one seed, are a run"
    assert planned("sft", seeds=3)[0] - base == pytest.approx(3 * (one - base)), "greedy answers of base, once"
    assert planned("sft", seeds=3, temperature=0.7)[0] == pytest.approx(3 * one), "other samples of base for each seed"
    assert planned("sft", "ssd")[0] - base == pytest.approx(2 * (one - base)), "ssd samples at another temperature"
    label = planned("rft", "upft:label")[0]
    assert label - planned("rft")[0] == pytest.approx(base), "the same solutions for both"
    assert planned("sft", "best_of_prefix")[0] - planned("sft")[0] == pytest.approx(base), "it trains nothing"
    one, run = planned("upft:probe", method="upft", prefix={"selection": "probe"}, generate={"samples": 4})
    assert one == pytest.approx(sum(run.values()))
    both = planned("upft:probe", "upft:auto")[0]
    assert both - one == pytest.approx(one - base - run["answers"]), "both learn from the same answers"
