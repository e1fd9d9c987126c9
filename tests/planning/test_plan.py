"""A plan tells beforehand what the ledger tells afterwards, without loading the model."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from click.testing import CliRunner
from conftest import MODEL
from helpers.models import write_model

from upft_mlx import pipeline
from upft_mlx.cli.main import cli
from upft_mlx.errors import MemoryLimitError, ModelError
from upft_mlx.events import Event, Note
from upft_mlx.models.architecture import from_config, read_architecture
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.pipeline import plan_recipe
from upft_mlx.planning import budget, speed
from upft_mlx.planning.budget import MemoryPlan, changed
from upft_mlx.planning.lengths import measure_prompts, of_lengths
from upft_mlx.planning.memory import Machine, fusing_peak
from upft_mlx.planning.plan import memory_plan
from upft_mlx.recipe.fields import AUTO
from upft_mlx.recipe.schema import Lora, Prompt, Recipe
from upft_mlx.results.plan import SolutionTokens
from upft_mlx.rundir import RunDir


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recipe(**changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "name": "planned",
        "model": "builtin:arithmetic",
        "problems": {"builtin": "arithmetic", "limit": 200},
        "generate": {"max_tokens": 64, "batch_size": 64},
        "prefix": {"length": 8},
        "evaluate": {"max_tokens": 64, "batch_size": 64, "benchmarks": [{"name": "arithmetic", "limit": 100}]},
        "publish": {"fuse": "adapter"},
    }
    for section, value in changes.items():
        data[section] = {**data[section], **value} if isinstance(value, dict) and section in data else value
    return Recipe.model_validate(data)


@pytest.mark.slow
def test_planned_tokens_and_time_are_those_of_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        time, "perf_counter", time.process_time
    )  # what else runs on the machine is not the plan's fault
    given = recipe(seed=0)
    planned = plan_recipe(given, tmp_path / "none")
    pipeline.run(given, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    generated, trained, evaluated = (run.entry(stage) for stage in ("generate", "train", "evaluate"))
    assert generated is not None
    assert trained is not None
    assert evaluated is not None
    assert planned.seconds is not None
    tokens = planned.tokens.this
    assert tokens.tokens_sampled == pytest.approx(generated.tokens_sampled, rel=0.02)
    assert tokens.tokens_trained == pytest.approx(trained.tokens_trained, rel=0.02)
    took, told = generated.seconds + trained.seconds + evaluated.seconds, sum(planned.seconds.values())
    print(f"CPU time: planned {told:.1f} s, took {took:.1f} s")
    assert took / 2 < told < took * 2


def test_what_training_looks_at_beside_its_steps_takes_time_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = speed.Speed(0.0, 1e12, 0.0, 1.0, of_lengths([(8, True)], "known"))
    monkeypatch.setattr("upft_mlx.pipeline.known", lambda _: fast)
    sizes = {"batch_size": 10, "report_every": 100, "validate_every": 100, "valid_ratio": 0.0}

    def seconds(**changes: Any) -> float:
        given = recipe(prefix={"length": 8, "structure_ratio": 0.0}, train=sizes | changes)
        planned = plan_recipe(given, tmp_path).seconds
        assert planned is not None
        return planned["train"]

    row = seconds(batch_size=200, epochs=3) - seconds(batch_size=200, epochs=2)  # an epoch's rows and a report
    row /= 200 + 16 / 3
    assert seconds(batch_size=200) == pytest.approx(row * (200 + (48 + 16) / 3)), "rows, what base thinks, one report"
    assert seconds() == pytest.approx(row * (200 + (48 + 2 * 16) / 3)), "steps 7 and 20"
    assert seconds(report_every=2) == pytest.approx(row * (200 + (48 + 3 * 16) / 3)), "steps 7, 14 and 20"
    held = seconds(valid_ratio=0.1, validate_every=6, batch_size=9)  # 20 steps, validated after 6, 12, 18 and 20
    assert held == pytest.approx(row * (180 + (48 + 3 * 16 + 4 * 20) / 3)), "8, 18 and 20"
    monkeypatch.setattr("upft_mlx.planning.plan.MOST_VALIDATED", 15)
    some = seconds(valid_ratio=0.1, validate_every=6, batch_size=9)
    assert held - some == pytest.approx(row * 4 * 5 / 3), "15 of the 20 held-out rows are measured"


@pytest.mark.parametrize(("template", "times"), [("none", 1), ("paper", 2)])
def test_the_problems_prompts_are_measured_once_if_training_and_sampling_use_the_same_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, times: int
) -> None:
    measured = Mock(wraps=measure_prompts)
    monkeypatch.setattr("upft_mlx.planning.plan.measure_prompts", measured)
    plan_recipe(recipe(prefix={"template": template}), tmp_path, calibrates=False)
    assert [call.args[0] for call in measured.call_args_list].count(200) == times


def test_without_a_calibration_nothing_is_loaded_and_no_weights_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr("upft_mlx.job.load_for", lambda *_, **__: pytest.fail("loaded"))
    bare = {"instruction": "{question}"}
    found = plan_recipe(recipe(model=str(folder), prompt=bare), tmp_path / "run")
    assert not found.model_is_here
    assert found.seconds is None
    whole = plan_recipe(recipe(), tmp_path / "run", calibrates=False)
    assert found.memory.peak_bytes == pytest.approx(whole.memory.peak_bytes, rel=0.02)
    assert found.disk_bytes["model to download"] == pytest.approx(whole.parameters * 2, rel=0.01)


def test_prefix_tokens_are_exact_and_the_others_say_what_is_assumed(tmp_path: Path) -> None:
    found = plan_recipe(recipe(prefix={"length": 8, "structure_ratio": 0.0}), tmp_path, calibrates=False)
    this = found.tokens.this
    assert this.tokens_sampled == 200 * 8
    assert this.tokens_trained == 190 * 8, "a twentieth is held out"
    with_eos = recipe(prefix={"length": 8, "structure_ratio": 0.0, "template": "paper", "eos": True})
    eos = plan_recipe(with_eos, tmp_path, calibrates=False)
    assert eos.tokens.this.tokens_trained == 190 * 9
    assert this.how == "prefixes alone"
    assert found.tokens.rft.tokens_sampled == 16 * 200 * 32, "half of max_tokens"
    assert found.tokens.sft.tokens_trained == 190 * 33
    assert found.tokens.rft.tokens_trained == 4 * 190 * 33, "the most that RFT may keep"
    assert "assumed" in found.tokens.rft.how


def test_solutions_that_a_run_has_already_count(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    rows = [
        {
            "problem_id": str(n),
            "sample": 0,
            "kind": "full",
            "completion_ids": [1] * size,
            "completion": "",
            "finish_reason": end,
            "logprob": None,
        }
        for n, (size, end) in enumerate([(10, "stop"), (20, "stop"), (60, "length")])
    ]
    run.solutions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = plan_recipe(recipe(prefix={"structure_ratio": 0.5}), tmp_path, calibrates=False)
    assert found.solution_tokens == SolutionTokens(30.0, "measured on 3 full solutions of this run")
    assert found.tokens.this.tokens_sampled == 100 * 8 + 100 * 30
    assert found.tokens.this.tokens_trained == pytest.approx(95 * 8 + 95 * (2 / 3) * 16), "those cut train nothing"
    whole = recipe(prefix={"structure_ratio": 0.5, "selection": "label"})  # prefixes of full solutions
    tokens = plan_recipe(whole, tmp_path, calibrates=False).tokens.this
    assert [tokens.tokens_sampled, tokens.tokens_trained] == pytest.approx([200 * 30, 95 * (2 / 3) * (8 + 16)])


@pytest.mark.parametrize("method", ["upft", "structure_only", "sft"])
def test_a_run_whose_solutions_were_all_cut_can_be_planned(method: str, tmp_path: Path) -> None:
    row = {
        "problem_id": "1",
        "sample": 0,
        "kind": "full",
        "completion_ids": [1] * 64,
        "completion": "",
        "logprob": None,
    }
    RunDir(tmp_path).solutions.write_text(json.dumps({**row, "finish_reason": "length"}) + "\n")
    given = recipe(method=method, prefix={"structure_ratio": 1.0})
    found = plan_recipe(given, tmp_path, calibrates=False)
    assert found.tokens.this.tokens_trained == 0
    assert found.memory.peak_bytes["train"] > 0


def test_a_calibration_is_made_once_and_made_again_when_a_setting_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    calls = []
    real = speed.calibrate

    def counted(*arguments: Any) -> speed.Speed:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr("upft_mlx.pipeline.calibrate", counted)
    first = plan_recipe(recipe(), tmp_path)
    assert plan_recipe(recipe(), tmp_path).seconds == first.seconds
    assert len(calls) == 1
    plan_recipe(recipe(generate={"batch_size": 16}), tmp_path)
    assert len(calls) == 2
    for file in (cache / "upft" / "speed").iterdir():
        file.write_text("{damaged")
    plan_recipe(recipe(), tmp_path)
    assert len(calls) == 3


def test_a_time_limit_leaves_an_estimate_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speed.SECONDS, "full", 0.0)
    found = plan_recipe(recipe(), tmp_path)
    assert found.solution_tokens.how.startswith("estimated from")


def test_nothing_is_sampled_for_the_datasets_own_solutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were planned as samples, cut at generate.max_tokens, and as long as those of a calibration."""
    data = tmp_path / "own.jsonl"
    answers = [f"We add one to {n} and get the number {n + 1}." + " Then we stop." * (n % 20) for n in range(100)]
    data.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": a}) + "\n" for n, a in enumerate(answers)))
    fast = speed.Speed(0.0, 1.0, 1.0, 1.0, of_lengths([(8, True), (2, True)], "sampled"))
    monkeypatch.setattr("upft_mlx.pipeline.known", lambda _: fast)
    monkeypatch.setattr(pipeline, "this_machine", lambda: machine(3_000_000, 2**34))
    sizes = {"batch_size": "auto", "valid_ratio": 0.0}
    changes: dict[str, Any] = {
        "problems": {"path": str(data), "builtin": None},
        "generate": {"max_tokens": 16},
        "train": sizes,
    }
    given = recipe(method="annotated", **changes)
    found = plan_recipe(given, tmp_path / "run")
    pipeline.run_stage(given, tmp_path / "run", "generate")
    rows = [json.loads(line) for line in RunDir(tmp_path / "run").solutions.read_text().splitlines()]
    lengths = [len(row["completion_ids"]) for row in rows]
    assert max(lengths) > 64
    assert found.solution_tokens == SolutionTokens(sum(lengths) / 100, "the dataset's own solutions")
    assert (found.tokens.this.tokens_sampled, found.tokens.this.tokens_trained) == (0, sum(lengths) + 100)
    assert found.tokens.sft.tokens_sampled == 100 * 5, "as long as samples"
    assert found.settings["train.batch_size"] == 4
    assert found.seconds is not None
    assert "generate" not in {**found.seconds, **found.memory.peak_bytes}
    assert not any(line.startswith("generate") for line in found.memory.too_large)
    assert found.seconds["evaluate"] == 2 * 100 * 5, "answers are sampled"
    assert plan_recipe(given, tmp_path / "run").tokens == found.tokens, "which the run's rows change no more"


# auto


def test_auto_takes_what_fits_and_a_run_keeps_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = recipe(
        problems={"limit": 60},
        generate={"batch_size": "auto"},
        train={"batch_size": "auto", "micro_batch_size": "auto", "steps": 1},
        evaluate={"batch_size": "auto", "benchmarks": []},
    )
    large = plan_recipe(given, tmp_path, calibrates=False).settings
    assert large == {
        "generate.batch_size": 64,
        "evaluate.batch_size": 64,
        "train.batch_size": 2,
        "train.micro_batch_size": 2,
    }
    monkeypatch.setattr(pipeline, "this_machine", lambda: machine(11_000_000))
    small = plan_recipe(given, tmp_path, calibrates=False).settings
    assert (small["generate.batch_size"] or 64) < 32
    pipeline.run_stage(given, tmp_path / "run", "generate")
    kept = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert kept["generate"]["batch_size"] == small["generate.batch_size"]
    assert pipeline.run_stage(given, tmp_path / "run", "build").stages, "the next stage finds the same numbers"


def test_the_paper_s_batch_is_taken_where_it_leaves_enough_steps(tmp_path: Path) -> None:
    """Embedded are 1000 problems."""
    for limit, batch in ((200, 8), (900, 32), (3, 1)):
        given = recipe(problems={"limit": limit}, train={"batch_size": "auto"})
        assert plan_recipe(given, tmp_path, calibrates=False).settings["train.batch_size"] == batch


@pytest.mark.parametrize("value", [0, -3, "many", True, 2.5])
def test_other_sizes_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        recipe(train={"batch_size": value})


# What does not fit


def machine(size: int, memory: int = 0) -> Machine:
    return Machine(
        is_gpu=False, bytes=size, what="a small machine", whole=memory or size, dense_bytes=(memory or size) // 4
    )


def test_a_run_that_cannot_fit_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By half or more, even one sequence at a time with checkpointing."""
    monkeypatch.setattr(pipeline, "this_machine", lambda: machine(1_000_000))
    monkeypatch.setattr("upft_mlx.job.load_for", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(MemoryLimitError) as refused:
        pipeline.run(recipe(train={"micro_batch_size": 16}), tmp_path / "run")
    lines = str(refused.value).splitlines()
    assert [line.split()[0] for line in lines] == ["generate", "train", "evaluate", "if"]
    assert "generate needs about" in lines[0]
    assert "a small machine is 1 MB; no batch size, checkpointing or length fits" in lines[0]
    assert not (tmp_path / "run" / "solutions.partial.jsonl").exists()


@pytest.mark.parametrize("memory", [12_000_000, 2**34], ids=["smaller settings fit", "swapping helps"])
def test_what_may_fit_gets_a_warning(memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LoadedError(Exception):
        pass

    def load(*_: object, **__: object) -> None:
        raise LoadedError

    events: list[Event] = []
    size = 12_000_000 if memory == 12_000_000 else 1_000_000
    monkeypatch.setattr(pipeline, "this_machine", lambda: machine(size, memory))
    monkeypatch.setattr("upft_mlx.job.load_for", load)
    with pytest.raises(LoadedError):
        pipeline.run(recipe(train={"micro_batch_size": 16}), tmp_path / "run", events.append)
    notes = [event.text for event in events if isinstance(event, Note) and "memory may not be enough" in event.text]
    assert [note.split(": ")[1].split()[0] for note in notes][:3] == ["generate", "train", "evaluate"]
    assert ("--set generate.batch_size=" in notes[0]) == (memory == 12_000_000)


def test_every_remedy_that_is_named_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upft_mlx.pipeline.this_machine", lambda: machine(12_000_000))
    given = recipe(train={"micro_batch_size": 16})
    for line in plan_recipe(given, tmp_path, calibrates=False).memory.too_large:
        stage, told = line.split()[0], line.split(" with --set ")[1].split(" --set ")
        fields = {name: json.loads(value) for name, value in (item.split("=") for item in told)}
        found = plan_recipe(budget.changed(given, fields), tmp_path, calibrates=False).memory
        assert found.peak_bytes[stage] <= found.budget_bytes


@pytest.mark.parametrize(
    ("bits", "share", "told"), [(8, 0.9, "fuse=mixed"), (8, 0.0, "fuse=adapter"), (None, 0.9, "fuse=adapter")]
)
def test_fusing_that_does_not_fit_is_told_a_way_that_the_model_has(
    bits: int | None, share: float, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of 16 bits cannot be fused into 6 or 8, and one that is too large for any way still has its adapter."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 16}
    config |= {"head_dim": 128, **({"quantization": {"bits": bits, "group_size": 64}} if bits else {})}
    (folder / "config.json").write_text(json.dumps(config))
    needed = fusing_peak(read_architecture(folder), Lora(), Machine(is_gpu=True), 100, all_float32=True)
    small = Machine(is_gpu=True, bytes=round(share * needed) + 1, what="a small machine", whole=2**34)
    monkeypatch.setattr("upft_mlx.pipeline.this_machine", lambda: small)
    lines = plan_recipe(recipe(model=str(folder), publish={"fuse": "auto"}), tmp_path).memory.too_large
    [line] = [line for line in lines if line.startswith("fuse")]
    assert f"--set publish.{told}" in line, line


def test_a_benchmarks_own_samples_and_length_are_planned(tmp_path: Path) -> None:
    """They were planned as `evaluate` has them, and a smaller evaluate.max_tokens was named as a remedy."""

    def planned(**own: Any) -> tuple[Recipe, MemoryPlan]:
        entries = [{"name": "arithmetic", "limit": 99, **own}, {"name": "arithmetic", "label": "short", "limit": 9}]
        job = pipeline.prepare(recipe(evaluate={"temperature": 0.6, "benchmarks": entries}), tmp_path, weights=False)
        return job.recipe, memory_plan(job, machine(2**30))

    def peak(given: Recipe, plan: MemoryPlan, **settings: Any) -> float:
        return plan.peak("evaluate", changed(given, {f"evaluate.{name}": value for name, value in settings.items()}))

    plain, (given, plan) = planned(), planned(max_tokens=4096, samples=16)
    assert peak(given, plan) > 2 * peak(*plain)
    assert peak(given, plan) == pytest.approx(peak(*plain, max_tokens=4096, samples=16), rel=0.01)
    assert peak(given, plan) == peak(given, plan, max_tokens=32), "the long one decides"
    assert peak(given, plan) < peak(given, plan, max_tokens=65536), "the short one has no length of its own"
    least = peak(given, plan, batch_size=1)
    [(line, _)] = replace(plan, machine=machine(round(0.9 * least))).too_large(given, ["evaluate"])
    assert line.endswith("or more quantized model, or lower the max_tokens in a benchmark's own entry")
    settled = replace(plan, machine=machine(2 * round(least))).settle(changed(given, {"evaluate.batch_size": AUTO}))
    assert settled.evaluate.batch_size < 64, "which would fit a benchmark of 64 tokens"


def test_what_is_done_is_not_planned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = recipe(problems={"limit": 12}, train={"steps": 1}, evaluate={"benchmarks": []})
    pipeline.run_stage(given, tmp_path / "run", "generate")
    monkeypatch.setattr(pipeline, "this_machine", lambda: machine(1000))
    pipeline.run_stage(given, tmp_path / "run", "generate")
    pipeline.run_stage(given, tmp_path / "run", "build")
    with pytest.raises(MemoryLimitError, match="train needs"):
        pipeline.run_stage(given, tmp_path / "run", "train")


def test_a_model_that_cannot_be_planned_runs_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("num_attention_heads")
    events: list[Event] = []
    given = recipe(model=str(folder), problems={"limit": 4}, evaluate={"benchmarks": []})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="lacks `num_attention_heads`"):
        plan_recipe(given, tmp_path / "run", calibrates=False)
    shutil.copy(MODEL / "config.json", folder / "config.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "upft_mlx.planning.plan.read_architecture", lambda *_: from_config({**config, "model_type": "mamba"})
        )
        pipeline.run_stage(given, tmp_path / "run", "generate", events.append)
    assert any(isinstance(event, Note) and event.text.startswith("memory is not planned") for event in events)


def test_who_knows_better_can_say_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = recipe(problems={"limit": 4}, evaluate={"benchmarks": []})
    monkeypatch.setenv("UPFT_MEMORY_GB", "0.001")
    with pytest.raises(MemoryLimitError, match=r"but UPFT_MEMORY_GB is 1 MB.*\n.*UPFT_MEMORY_GB=N"):
        pipeline.run_stage(given, tmp_path / "run", "generate")
    monkeypatch.setenv("UPFT_MEMORY_GB", "8.5")
    pipeline.run_stage(given, tmp_path / "run", "generate")
    for wrong in ("much", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("UPFT_MEMORY_GB", wrong)
        with pytest.raises(MemoryLimitError, match=f"UPFT_MEMORY_GB: '{wrong}': should be a number"):
            plan_recipe(given, tmp_path / "run", calibrates=False)


# The command


def test_the_command_prints_tables_or_json(tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli, ["plan", "quickstart", "--no-calibration", "--run-dir", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    for words in (
        "trained on",
        "RFT, 16 full solutions",
        "peak memory of",
        "every stage fits in memory",
        "no estimate without",
    ):
        assert words in shown.output
    assert re.search(r"\nrows +\d\.\d MB\n", shown.output), "as `upft kept` and `push` give sizes on disk"
    assert "not a valid number of GB" in CliRunner().invoke(cli, ["plan", "quickstart", "--mac", "16GB"]).stderr
    asked = CliRunner().invoke(cli, ["plan", "quickstart", "--mac", "8", "--json", "--run-dir", str(tmp_path)])
    facts = json.loads(asked.stdout)
    assert facts["seconds"] is None
    assert facts["memory"]["budget_bytes"] == int(8 * 2**30 * 2 / 3)


def test_a_plan_for_a_model_of_another_kind_says_what_was_not_measured(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_experts": 8, "mamba_d_state": 16}))
    found = plan_recipe(recipe(model=str(folder)), tmp_path, calibrates=False)
    assert found.memory.not_measured_for == ["state space layers"]  # experts have a term of their own


def test_prompts_are_measured_by_their_tokens(loaded: Loaded) -> None:
    questions = ["a b c", "how many apples are left", "one", "two pears and three apples, how many?"]
    renderer = Renderer(loaded.tokenizer, Prompt())
    lengths = [len(renderer.ids(question)) for question in questions]
    found = measure_prompts(len(questions), questions.__getitem__, renderer.ids)
    assert (found.count, found.longest) == (4, sorted(lengths, reverse=True))
    assert found.mean == sum(lengths) / 4
    shared = found.shared
    assert len({tuple(renderer.ids(question)[:shared]) for question in questions}) == 1
    assert len({tuple(renderer.ids(question)[: shared + 1]) for question in questions}) > 1


def test_a_step_of_one_sequence_is_told_as_one() -> None:
    told = CliRunner().invoke(cli, ["plan", "quickstart", "--no-calibration", "--set", "train.batch_size=1"]).stdout
    assert " steps of 1 sequence, " in told


def test_each_method_of_a_comparison_takes_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = speed.Speed(0.0, 1.0, 0.01, 1e-9, of_lengths([(8, True)], "known"))
    monkeypatch.setattr("upft_mlx.pipeline.known", lambda _: fast)

    def seconds(method: str) -> float:
        given = recipe(compare={"methods": (method,), "seeds": 1, "samples": 4}, problems={"limit": 20})
        return (plan_recipe(given, tmp_path).other_seconds or {})["compare"]

    asked = seconds("best_of_prefix")  # nothing is sampled to train on, and nothing is trained
    assert seconds("ssd") - asked == seconds("sft") - asked == pytest.approx(20 * 8, rel=1e-3)
    assert seconds("rft") - asked == pytest.approx(4 * 20 * 8, rel=1e-3)
    assert seconds("cold") == seconds("upft")


@pytest.mark.parametrize("refused", [{"generate": {"temperature": 0.0}}, {"prefix": {"structure": "checked"}}])
def test_a_recipe_that_cannot_be_compared_is_planned_all_the_same(
    refused: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = speed.Speed(1.0, 1.0, 0.01, 1e-9, of_lengths([(8, True)], "known"))
    monkeypatch.setattr("upft_mlx.pipeline.known", lambda _: fast)
    assert plan_recipe(recipe(**refused), tmp_path).other_seconds == {"export": 2.0}


def test_rows_without_room_behind_what_all_prompts_share_are_planned(tmp_path: Path) -> None:
    """`upft plan` ended in a division by zero."""
    planned = plan_recipe(recipe(train={"max_length": 2}), tmp_path, calibrates=False)
    assert planned.memory.peak_bytes["train"] > 0
