"""`upft ask`: answers are the sampler's and the evaluation's, the screen shows both variants, Ctrl-C ends an answer."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL
from helpers.base_and_tuned import write_adapter
from helpers.input import assert_fails, no_network, upft, write
from helpers.show import TMUX, wait_for
from rich.console import Console

import upft_mlx
from upft_mlx.events import Event, Note, Reply, Variant
from upft_mlx.inspection import ask as asking
from upft_mlx.inspection.ask import Asker, Conversation
from upft_mlx.models.adapters import AdapterSwitch, load_adapter
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded, load
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.schema import Prompt, Recipe
from upft_mlx.rows import EvaluationRow, read_json, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Request
from upft_mlx.sampling.draw import Sampling
from upft_mlx.sampling.sampler import Sampler
from upft_mlx.ui.ask import open_answers

__all__ = ["no_network"]
pytestmark = pytest.mark.usefixtures("no_network")

MakeRecipe = Callable[..., Recipe]
QUESTION = "Mia has 4 pens and gets 3 more. How many pens does Mia have?"
OTHERS = ("Finn has 6 marbles and makes 2 more.", "Paul has 70 shells and finds 10 more. 8 friends share them all.")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"), size=0.06)


@pytest.fixture(scope="module")
def variants(adapter: Path) -> dict[Variant, Loaded]:
    """Each variant by itself, loaded the plain way."""
    tuned = load(MODEL)
    load_adapter(tuned, adapter)
    return {"base": load(MODEL), "tuned": tuned}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sampled(loaded: Loaded, prompt: list[int], max_tokens: int = 40) -> str:
    """The sampler's greedy completion."""
    (completion,) = Sampler(loaded, Sampling(0.0)).sample([Request(prompt, max_tokens)], seed=5)
    return str(loaded.tokenizer.decode(completion.ids))


# The answers.


@pytest.mark.parametrize("question", [QUESTION, *OTHERS])
def test_greedy_answers_are_those_of_the_sampler_on_each_variant_alone(
    make_recipe: MakeRecipe, adapter: Path, variants: dict[Variant, Loaded], question: str
) -> None:
    recipe = make_recipe(prompt={"system": "Be brief."})
    answers = Conversation(Asker(recipe, load(MODEL), adapter), keep=False).ask(question)
    for variant, loaded in variants.items():
        prompt = Renderer(loaded.tokenizer, Prompt(system="Be brief.")).ids(question)
        assert answers[variant].text == sampled(loaded, prompt)
        assert answers[variant].tokens > 0
        assert answers[variant].finish_reason == "stop"
        assert answers[variant].seconds > 0


def test_greedy_answers_are_those_of_an_evaluation(folder: Path, adapter: Path) -> None:
    arguments = ("--model", "builtin:arithmetic", "--adapter", adapter)
    assert upft("evaluate", *arguments, "--limit", "3", "--run-dir", "run").exit_code == 0
    questions = [json.loads(line)["question"] for line in (MODEL.parent / "test.jsonl").read_text().splitlines()[:3]]
    asker = Asker(asking_recipe(), load(MODEL), adapter)
    for variant in asker.variants:
        rows = list(read_rows(folder / f"run/evaluation/arithmetic/{variant}.jsonl", EvaluationRow))
        said = [Conversation(asker, keep=False).ask(question)[variant] for question in questions]
        assert [answer.text for answer in said] == [row.completion for row in rows]
        assert [answer.tokens for answer in said] == [row.tokens for row in rows]


def asking_recipe() -> Recipe:
    return Recipe.model_validate({"model": "builtin:arithmetic", "problems": {"builtin": "arithmetic"}})


def test_the_variants_differ_and_come_back(make_recipe: MakeRecipe, adapter: Path) -> None:
    conversation = Conversation(Asker(make_recipe(), load(MODEL), adapter), keep=False)
    first = conversation.ask(QUESTION)
    assert first["base"].text != first["tuned"].text
    again = conversation.ask(QUESTION)
    assert [answer.text for answer in again.values()] == [answer.text for answer in first.values()]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_stream_grows_token_by_token_to_what_sample_gives(loaded: Loaded, temperature: float) -> None:
    sampler = Sampler(loaded, Sampling(temperature))
    request = Request(Renderer(loaded.tokenizer, Prompt()).ids(QUESTION), 40)
    steps = list(sampler.stream(request, seed=3))
    (whole,) = sampler.sample([request], seed=3)
    assert steps[-1] == whole
    lengths = [len(step.ids) for step in steps]
    assert lengths[: len(whole.ids)] == list(range(1, len(whole.ids) + 1))
    assert all(step.ids == whole.ids[: len(step.ids)] for step in steps)


def test_a_stream_that_is_left_changes_nothing_for_the_next(loaded: Loaded) -> None:
    sampler = Sampler(loaded, Sampling(0.0))
    request = Request(Renderer(loaded.tokenizer, Prompt()).ids(QUESTION), 40)
    (whole,) = sampler.sample([request], seed=3)
    stream = sampler.stream(request, seed=3)
    next(stream)
    stream.close()
    assert sampler.sample([request], seed=3) == [whole]


def test_answers_are_told_as_they_grow_base_first(make_recipe: MakeRecipe, adapter: Path) -> None:
    told: list[Reply] = []
    answers = Conversation(Asker(make_recipe(), load(MODEL), adapter), keep=False).ask(QUESTION, told.append)
    order = [answer.variant for answer in told]
    assert order == sorted(order)
    for variant in ("base", "tuned"):
        mine = [answer for answer in told if answer.variant == variant]
        assert [answer.tokens for answer in mine[:3]] == [1, 2, 3]
        assert all(answer.finish_reason is None for answer in mine[:-1])
        assert mine[-1] == answers[variant]


def test_max_tokens_cuts_and_says_so(make_recipe: MakeRecipe) -> None:
    asker = Asker(make_recipe(), load(MODEL), max_tokens=3)
    answer = Conversation(asker, keep=False).ask(QUESTION)["base"]
    assert (answer.tokens, answer.finish_reason) == (3, "length")
    assert Asker(make_recipe(), load(MODEL)).max_tokens == 40  # evaluate.max_tokens


def test_with_a_temperature_the_same_questions_get_the_same_answers_again(make_recipe: MakeRecipe) -> None:
    def talk() -> list[str]:
        conversation = Conversation(Asker(make_recipe(), load(MODEL), temperature=1.0), keep=False)
        return [conversation.ask(QUESTION)["base"].text for _ in range(3)]

    first = talk()
    assert first == talk()
    assert len(set(first)) > 1  # each question has a seed of its own


# Conversations.


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The turns of every conversation that was rendered."""
    rendered: list[list[str]] = []
    conversation = Renderer.conversation

    def noting(self: Renderer, turns: Any) -> list[int]:
        rendered.append(list(turns))
        return conversation(self, turns)

    monkeypatch.setattr(Renderer, "conversation", noting)
    return rendered


def test_each_question_stands_alone_unless_the_conversation_is_kept(
    make_recipe: MakeRecipe, adapter: Path, turns: list[list[str]]
) -> None:
    asker = Asker(make_recipe(), load(MODEL), adapter)
    alone = Conversation(asker, keep=False)
    alone.ask("One?")
    alone.ask("Two?")
    assert turns == [["One?"], ["One?"], ["Two?"], ["Two?"]]
    turns.clear()
    kept = Conversation(asker, keep=True)
    first = kept.ask("One?")
    kept.ask("Two?")
    assert turns[2:] == [["One?", first["base"].text, "Two?"], ["One?", first["tuned"].text, "Two?"]]


def test_a_conversation_is_rendered_with_its_roles(loaded: Loaded) -> None:
    renderer = Renderer(loaded.tokenizer, Prompt(system="Be brief."))
    text = loaded.tokenizer.decode(renderer.conversation(["One?", "1", "Two?"]))
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
        "<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert renderer.conversation(["One?"]) == renderer.ids("One?")


def test_ctrl_c_ends_the_answer_and_the_next_question_is_answered(
    make_recipe: MakeRecipe, adapter: Path, turns: list[list[str]]
) -> None:
    conversation = Conversation(Asker(make_recipe(), load(MODEL), adapter), keep=True)
    whole = conversation.ask(QUESTION)
    before = signal.getsignal(signal.SIGINT)

    def press(answer: Reply) -> None:
        if answer.tokens == 3 and answer.finish_reason is None:
            os.kill(os.getpid(), signal.SIGINT)

    cut = conversation.ask("And then?", press)
    assert list(cut) == ["base"]
    assert (cut["base"].tokens, cut["base"].finish_reason) == (3, "interrupted")
    assert signal.getsignal(signal.SIGINT) is before
    turns.clear()
    conversation.ask("More?")
    assert turns[0] == [QUESTION, whole["base"].text, "More?"]  # tuned did not come to answer the one before


# What is asked: recipes, runs, models.


def trained_run(folder: Path, adapter: Path) -> Path:
    """A run of a small recipe, trained."""
    write(
        folder / "own.yaml",
        "model: builtin:arithmetic\nproblems: {builtin: arithmetic, limit: 12}\ngenerate: {max_tokens: 40}\n"
        "train: {steps: 1}\n",
    )
    for stage in ("generate", "build", "train"):
        assert upft(stage, "own.yaml").exit_code == 0
    return folder / "runs/own"


def test_numbers_that_the_run_chose_for_auto_are_no_change(folder: Path) -> None:
    auto = "{batch_size: auto, max_tokens: 40}"
    write(
        folder / "own.yaml",
        f"model: builtin:arithmetic\nproblems: {{builtin: arithmetic, limit: 12}}\ngenerate: {auto}\nevaluate: {auto}\n"
        "train: {steps: 1, batch_size: auto, micro_batch_size: auto}\n",
    )
    before = json.loads(upft("preview", "own.yaml", "--json").stdout)
    for stage in ("generate", "build", "train"):
        assert upft(stage, "own.yaml").exit_code == 0
    result = upft("ask", "own.yaml", QUESTION, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    result = upft("ask", "own.yaml", QUESTION, "--json", "--set", "generate.batch_size=3")
    assert "was trained with other settings (generate.batch_size" in result.stderr
    after = json.loads(upft("preview", "own.yaml", "--json").stdout)
    assert [found["source"] for found in (before, after)] == ["stand-in", "dataset"]


def test_a_recipe_a_run_and_its_name_are_the_same_and_changes_are_noticed(folder: Path, adapter: Path) -> None:
    run = trained_run(folder, adapter)
    recipe = (folder / "own.yaml").read_text()
    shutil.move(folder / "own.yaml", folder / "elsewhere.yaml")
    found = [upft("ask", target, QUESTION, "--json") for target in ("own", run, "runs/own")]
    assert [result.exit_code for result in found] == [0, 0, 0]
    assert {result.stderr for result in found} == {""}
    facts = [json.loads(result.stdout) for result in found]
    assert [fact["answers"]["tuned"]["text"] for fact in facts] == [facts[0]["answers"]["tuned"]["text"]] * 3
    assert Path(facts[0]["adapter"]) == Path("runs/own/adapter")
    result = upft("ask", "elsewhere.yaml", QUESTION, "--json", "--run-dir", run)
    assert result.stderr == ""
    assert json.loads(result.stdout)["answers"]["tuned"]["text"] == facts[0]["answers"]["tuned"]["text"]
    result = upft("ask", "own", QUESTION, "--json", "--set", "train.learning_rate=0.01", "--set", "prefix.length=3")
    assert "was trained with other settings (prefix.length, train.learning_rate); `upft run` trains" in result.stderr
    assert json.loads(result.stdout)["answers"]["tuned"]
    ledger = RunDir(run)
    if entry := ledger.entry("train"):  # a later stage has found the model where it is now
        ledger.record("train", replace(entry, recipe={**read_json(ledger.recipe), "model": "another/place"}))
    assert upft("ask", "own", QUESTION, "--json").stderr == ""
    write(folder / "own.yaml", recipe + "seed: 3\n")
    assert upft("generate", "own.yaml").exit_code == 0
    older = "the adapter in runs/own is older than the run's rows; `upft run` trains it again\n"
    assert upft("ask", "own", QUESTION).stderr == older.replace(
        "is older", "was trained with other settings (seed) and is older"
    )
    assert upft("ask", "own", QUESTION, "--set", "seed=0").stderr == older  # it is compared with its own recipe
    upft_mlx.ask(load_recipe("own.yaml", ["seed=0"]), QUESTION, notify=(told := list[Event]()).append)
    assert told == [Note(older.strip())]


@pytest.mark.parametrize("target", ["quickstart", "nowhere.yaml"])
def test_without_an_adapter_base_answers_alone_and_that_is_said(folder: Path, target: str) -> None:
    if target == "nowhere.yaml":
        write(folder / target, "model: builtin:arithmetic\nproblems: {builtin: arithmetic}\n")
    result = upft("ask", target, QUESTION, "--max-tokens", "8")
    assert result.exit_code == 0, result.stderr
    assert "no adapter in runs/" in result.stderr
    assert "base answers alone" in result.stderr
    assert "base:" in result.stdout
    assert "tuned:" not in result.stdout
    facts = json.loads(upft("ask", target, QUESTION, "--json").stdout)
    assert facts["adapter"] is None
    assert facts["answers"]["tuned"] is None


def test_a_wait_for_kernels_is_said_on_stderr_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upft_mlx.inspection.ask.compiles_first", lambda: "kernels are compiled")
    result = upft("ask", "--model", "builtin:arithmetic", "--max-tokens", "1", QUESTION, "--json")
    assert "kernels are compiled" in result.stderr
    assert json.loads(result.stdout)["question"] == QUESTION


def test_json_has_both_answers_with_tokens_and_seconds(
    folder: Path, adapter: Path, variants: dict[Variant, Loaded]
) -> None:
    result = upft("ask", "--model", "builtin:arithmetic", "--adapter", adapter, QUESTION, "--json")
    facts = json.loads(result.stdout)
    assert {name: facts[name] for name in ("model", "adapter", "question", "temperature", "max_tokens")} == {
        "model": "builtin:arithmetic",
        "adapter": str(adapter),
        "question": QUESTION,
        "temperature": 0.0,
        "max_tokens": 1024,
    }
    for variant, loaded in variants.items():
        answer = facts["answers"][variant]
        assert answer["text"] == sampled(loaded, Renderer(loaded.tokenizer, Prompt()).ids(QUESTION))
        assert set(answer) == {"text", "tokens", "seconds", "finish_reason"}


def test_the_question_may_come_from_a_pipe(folder: Path) -> None:
    from click.testing import CliRunner

    from upft_mlx.cli.main import cli

    arguments = ["ask", "--model", "builtin:arithmetic", "--json"]
    result = CliRunner().invoke(cli, arguments, input=f"{QUESTION}\n")
    assert json.loads(result.stdout)["question"] == QUESTION


def test_an_interrupted_answer_ends_with_status_130(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Reply("base", "Firs", 1, 0.1, "interrupted")
    monkeypatch.setattr(asking.Asker, "ask", lambda self, turns, on_text: on_text(answer) or {"base": answer})
    result = upft("ask", "--model", "builtin:arithmetic", QUESTION)
    assert result.exit_code == 130
    assert "interrupted" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        ([], 2, "give a recipe or a run before the question, or a model with --model"),
        (["quickstart", QUESTION, "--model", "builtin:arithmetic"], 2, "not both"),
        (["quickstart", "  "], 2, "the question is empty"),
        (["quickstart"], 2, "the question is empty"),
        (["quickstart", "3 + 4\udcff?"], 2, "the question cannot be read"),
        ([QUESTION], 2, "which is read as a recipe or run"),
        (["quickstart", QUESTION, "--chat"], 2, "--chat needs a terminal"),
        (["quickstart", QUESTION, "--temperature", "-1"], 2, "--temperature"),
        (["quickstart", QUESTION, "--max-tokens", "0"], 2, "--max-tokens"),
        (["qickstart", QUESTION], 2, "nor is it a run directory"),
        (
            ["quickstart", QUESTION, "--adapter", "nowhere"],
            1,
            "nowhere: no such adapter folder; use a folder with adapter_config.json",
        ),
        (["--model", "no such thing", QUESTION], 2, "neither a folder nor a Hub id"),
    ],
)
def test_what_is_wrong_is_refused(folder: Path, arguments: list[str], status: int, part: str) -> None:
    result = upft("ask", *arguments)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == status, result.stderr
    assert part in result.stderr
    assert "Traceback" not in result.stderr


def test_a_damaged_run_is_refused(folder: Path) -> None:
    write(folder / "runs/own/recipe.json", "{}")
    assert_fails(upft("ask", "own", QUESTION), 1, "not a recipe of this version")


# The screen.


def drawn(answers: list[Reply], width: int, height: int = 30, *, at_end: bool = True) -> list[str]:
    """The last picture on a terminal of this size: the whole answers, or the last frame while they grow."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=width, height=height)
    with open_answers(["base", "tuned"], plain=False, console=console) as view:
        for answer in answers:
            view(answer)
        if not at_end:
            return lines_of(view, console)
        file.seek(0)
        file.truncate()
    text = file.getvalue()
    return text[text.rindex("\x1b[2K") + 4 :].splitlines() if "\x1b[2K" in text else text.splitlines()


def lines_of(view: Any, console: Console) -> list[str]:
    lines = console.render_lines(view, console.options, pad=False)
    return ["".join(segment.text for segment in line) for line in lines]


BASE, TUNED = Reply("base", "2+2=4", 5, 1.24, "stop"), Reply("tuned", "It is\n4.", 7, 61.0, "length")


def test_on_a_wide_terminal_both_stand_side_by_side() -> None:
    lines = drawn([BASE, TUNED], 100)
    (body,) = [line for line in lines if "2+2=4" in line]
    assert "It is" in body
    assert any("5 tokens, 1.2 s" in line and "7 tokens, 1 min 01 s, cut at --max-tokens" in line for line in lines)
    assert max(map(len, lines)) <= 100


def test_on_a_narrow_terminal_one_stands_below_the_other() -> None:
    lines = drawn([BASE, TUNED], 60)
    places = [next(i for i, line in enumerate(lines) if part in line) for part in ("base", "2+2=4", "tuned", "It is")]
    assert places == sorted(places)
    assert len(set(places)) == 4
    assert max(map(len, lines)) <= 60


@pytest.mark.parametrize("width", [60, 100])
def test_while_it_grows_the_end_of_a_long_answer_is_on_the_screen_and_all_of_it_at_the_end(width: int) -> None:
    text = "\n".join(f"line {number}" for number in range(50))
    growing = replace(BASE, text=text, finish_reason=None)
    lines = drawn([growing], width, height=12, at_end=False)
    assert len(lines) <= 12
    assert any("line 49" in line for line in lines)
    assert not any("line 30" in line for line in lines)
    assert any("tuned" in line for line in lines)
    whole = drawn([replace(growing, finish_reason="stop")], width, height=12)
    assert all(any(f"line {number} " in line for line in whole) for number in range(50))
    assert not any("tuned" in line for line in whole)  # it did not begin


def test_lines_stream_without_control_characters_and_hold_back_half_characters() -> None:
    file = io.StringIO()
    with open_answers(["base"], plain=True, console=Console(file=file)) as view:
        for text in ("\x1b[31mA", "\x1b[31mAb\ufffd", "\x1b[31mAbü"):
            view(Reply("base", text, 2, 0.1))
            assert "\ufffd" not in file.getvalue()
        view(Reply("base", "\x1b[31mAbü", 3, 0.1, "stop"))
    assert file.getvalue() == "base:\nAbü\n(3 tokens, 0.1 s)\n\n"


def test_an_error_leaves_no_half_line() -> None:
    file = io.StringIO()
    with suppress(RuntimeError), open_answers(["base"], plain=True, console=Console(file=file)) as view:
        view(Reply("base", "Hal", 1, 0.1))
        raise RuntimeError
    assert file.getvalue() == "base:\nHal\n"


def test_a_question_that_is_refused_leaves_no_empty_panels() -> None:
    assert drawn([], 100) == []


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Types into a terminal of 100 columns and waits for what comes up."""
    session = f"upft-ask-{os.getpid()}"
    tmux = ["tmux", "-L", session]
    environment = [f"-e{name}={os.environ[name]}" for name in ("PYTHONPATH",) if name in os.environ]
    start = ["new-session", "-d", "-s", session, "-x", "100", "-y", "30", *environment, "sh"]
    subprocess.run([*tmux, "-f", "/dev/null", *start], check=True, cwd=tmp_path)

    def type_and_wait(keys: str, pattern: str) -> str:
        subprocess.run([*tmux, "send-keys", "-t", session, keys, *(["Enter"] if keys != "C-c" else [])], check=True)
        return wait_for(session, pattern)

    yield type_and_wait
    subprocess.run([*tmux, "kill-server"], check=False)


@pytest.mark.slow
@pytest.mark.skipif(TMUX is None, reason="tmux is not installed")
def test_a_chat_in_a_real_terminal(
    terminal: Callable[..., str], adapter: Path, variants: dict[Variant, Loaded]
) -> None:
    command = f"{sys.executable} -m upft_mlx ask --model builtin:arithmetic --adapter {adapter} --chat; echo status $?"
    terminal(command, r"quits\n>")
    text = terminal(QUESTION, r"(?s)base.*tuned.*tokens.*\n>\s*$")
    prompt = Renderer(variants["base"].tokenizer, Prompt()).ids(QUESTION)
    for loaded in variants.values():
        for line in sampled(loaded, prompt).splitlines():
            assert line in text
    assert "Traceback" not in terminal("C-c", "status 0")


def test_the_switch_is_off_and_on_as_for_an_evaluation(make_recipe: MakeRecipe, adapter: Path) -> None:
    asker = Asker(make_recipe(), load(MODEL), adapter)
    assert isinstance(asker._switch, AdapterSwitch)
    assert asker.variants == ("base", "tuned")
    assert Asker(make_recipe(), load(MODEL)).variants == ("base",)
