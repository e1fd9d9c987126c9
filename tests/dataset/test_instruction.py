"""One prompt: what is sampled, trained, analyzed, asked and measured is the same text, to the id."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from helpers.input import assert_fails, no_network, upft
from helpers.models import write_model
from helpers.preview import previewed

from upft_mlx import pipeline
from upft_mlx.data.benchmarks import BOXED, LETTER, resolve
from upft_mlx.data.problems import load_problems
from upft_mlx.dataset.instruction import as_run, differing, instructed, user_turn
from upft_mlx.evaluation import evaluate
from upft_mlx.inspection.ask import Asker, Conversation
from upft_mlx.inspection.browse import recipe_of
from upft_mlx.models.load import load, load_tokenizer
from upft_mlx.pipeline import plan_recipe
from upft_mlx.recipe.schema import PAPER_TEMPLATE, Prompt, Recipe
from upft_mlx.results.plan import PromptTokens
from upft_mlx.rows import write_json
from upft_mlx.rundir import RunDir
from upft_mlx.sampling import generate
from upft_mlx.sampling.decoding import Request
from upft_mlx.sampling.sampler import Sampler
from upft_mlx.studies import analyze

__all__ = ["no_network"]
pytestmark = pytest.mark.usefixtures("no_network")

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKS = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nPlease reason step by step, and put your final answer "
    "within \\boxed{}.<|im_end|>\n{% endif %}" + PLAIN
)
"""As Qwen2.5-Math's: a system turn of its own, unless the conversation brings one."""
BOX = "\nPlease reason step by step, and put your final answer within \\boxed{}."
LETTERS = "\nPlease reason step by step, and put the letter of your answer within \\boxed{}."
USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
OPTIONS = "Which?\n(A) red\n(B) blue"

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, str]] = {
    # template, prompt section, problem, the whole prompt, the user turn around a question
    "plain model": (PLAIN, {}, {"question": "1 + 1?", "answer": "2"}, USER.format("1 + 1?" + BOX), BOXED),
    "no answers": (PLAIN, {}, {"question": "1 + 1?"}, USER.format("1 + 1?" + BOX), BOXED),
    "system turn": (
        *(PLAIN, {"system": "Be brief."}, {"question": "1 + 1?", "answer": "2"}),
        *("<|im_start|>system\nBe brief.<|im_end|>\n" + USER.format("1 + 1?" + BOX), BOXED),
    ),
    "system turn that asks": (
        *(PLAIN, {"system": "Use \\boxed{}."}, {"question": "1 + 1?", "answer": "2"}),
        *("<|im_start|>system\nUse \\boxed{}.<|im_end|>\n" + USER.format("1 + 1?"), "{question}"),
    ),
    "chat template with its own instruction": (
        *(ASKS, {}, {"question": "1 + 1?", "answer": "2"}),
        f"<|im_start|>system{BOX}<|im_end|>\n" + USER.format("1 + 1?"),
        "{question}",
    ),
    "chat template whose instruction a system turn replaces": (
        *(ASKS, {"system": "Be brief."}, {"question": "1 + 1?", "answer": "2"}),
        *("<|im_start|>system\nBe brief.<|im_end|>\n" + USER.format("1 + 1?" + BOX), BOXED),
    ),
    "choice": (PLAIN, {}, {"question": OPTIONS, "answer": "B"}, USER.format(OPTIONS + LETTERS), LETTER),
    "choice, template that asks for a box": (
        *(ASKS, {}, {"question": OPTIONS, "answer": "(B)"}),
        *(f"<|im_start|>system{BOX}<|im_end|>\n" + USER.format(OPTIONS + LETTERS), LETTER),
    ),
    "the recipe's own": (
        *(ASKS, {"instruction": "Q: {question} A:"}, {"question": "1 + 1?", "answer": "2"}),
        *(f"<|im_start|>system{BOX}<|im_end|>\n" + USER.format("Q: 1 + 1? A:"), "Q: {question} A:"),
    ),
}


class StoppedError(Exception):
    pass


def made(folder: Path, case: str, **sections: Any) -> Recipe:
    """A recipe whose only problem is its benchmark's as well."""
    template, prompt, problem, *_ = CASES[case]
    model = write_model(folder / "model")
    (model / "tokenizer_config.json").write_text(
        json.dumps({**json.loads((model / "tokenizer_config.json").read_text()), "chat_template": template})
    )
    (folder / "own.jsonl").write_text(json.dumps({"id": "q", **problem}) + "\n")
    grader = "choice" if case.startswith("choice") else "maths"
    benchmark = {"name": "own", "path": str(folder / "own.jsonl"), "grader": grader}
    data = {
        "model": str(model),
        "problems": {"path": str(folder / "own.jsonl")},
        "prompt": prompt,
        "prefix": {"length": 4, "structure_ratio": 0.0, "template": "none"},
        "evaluate": {"benchmarks": [benchmark] if "answer" in problem else [], "max_tokens": 4},
        **sections,
    }
    return Recipe.model_validate(data)


def asked_of(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, run: Path, stage: str) -> list[int]:
    """The prompt that a stage gives its sampler first."""
    prompts: list[list[int]] = []
    run.mkdir(exist_ok=True)
    (run / "mine.txt").touch()  # or a command that is stopped takes its recipe.json back with the folder

    def sample(self: object, requests: Sequence[Request], *rest: object) -> NoReturn:
        prompts.extend(request.prompt_ids for request in requests)
        raise StoppedError

    module: Any = {"generate": generate, "evaluate": evaluate, "analyze": analyze}[stage]
    with monkeypatch.context() as patch:
        patch.setattr(module.Sampler, "sample", sample)
        with pytest.raises(StoppedError):
            analyze.run_analysis(recipe, run) if stage == "analyze" else pipeline.run_stage(recipe, run, stage)
    return prompts[0]


def trained(recipe: Recipe, run: Path, **prefix: Any) -> list[int]:
    """The prompt of the training row."""
    changed = recipe.model_copy(update={"prefix": recipe.prefix.model_copy(update=prefix)})
    (row,) = previewed(changed, run)["rows"]
    return [id_ for id_, supervised in zip(row["ids"], row["supervised"], strict=True) if not supervised]


@pytest.mark.parametrize("case", CASES)
def test_all_uses_have_the_prompt_that_is_worked_out_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    recipe, run = made(tmp_path, case), tmp_path / "run"
    tokenizer = load_tokenizer(Path(recipe.model))
    text, turn = CASES[case][3:]
    expected = tokenizer.encode(text, add_special_tokens=False)
    stages = ("generate", "analyze", *(("evaluate",) if recipe.evaluate.benchmarks else ()))
    for stage in stages:
        assert tokenizer.decode(asked_of(monkeypatch, recipe, run, stage)) == text, stage
        assert asked_of(monkeypatch, recipe, run, stage) == expected, stage
    assert trained(recipe, run, structure_ratio=0.0) == expected, "prefix rows"
    assert trained(recipe, run, structure_ratio=1.0) == expected, "structure rows"
    assert [prompt["ids"] for prompt in previewed(recipe, run)["prompts"]] == [expected] * (len(stages) - 1)
    assert json.loads((run / "recipe.json").read_text())["prompt"]["instruction"] == turn
    planned = plan_recipe(recipe, tmp_path / "none", calibrates=False)
    assert planned.prompt_tokens == PromptTokens(len(expected), len(expected))
    templated = trained(recipe, run, template="paper")
    question = CASES[case][2]["question"]
    assert tokenizer.decode(templated) == text.replace(question, question + PAPER_TEMPLATE), "and nothing else"


def test_a_question_is_asked_as_the_run_asked_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`upft ask` does not read the problems; the run says that these have letters for answers."""
    recipe, run = made(tmp_path, "choice"), RunDir(tmp_path / "run")
    asked_of(monkeypatch, recipe, run.root, "generate")
    asked: list[list[int]] = []
    stream = Sampler.stream

    def listening(self: Sampler, request: Request, seed: int) -> Any:
        asked.append(request.prompt_ids)
        return stream(self, request, seed)

    monkeypatch.setattr(Sampler, "stream", listening)
    settled = instructed(as_run(recipe, run), Path(recipe.model))
    conversation = Conversation(Asker(settled, load(Path(recipe.model)), max_tokens=2), keep=True)
    said = conversation.ask(OPTIONS)["base"].text
    conversation.ask("Why?")
    text = load_tokenizer(Path(recipe.model)).decode(asked[0])
    assert text == CASES["choice"][3]
    second = load_tokenizer(Path(recipe.model)).decode(asked[1])
    assert second == CASES["choice"][3] + f"{said}<|im_end|>\n" + USER.format("Why?"), "what follows is a conversation"
    assert as_run(recipe.model_copy(update={"prompt": Prompt(instruction="{question}!")}), run).prompt.instruction == (
        "{question}!"
    )


def test_a_benchmark_of_the_other_kind_is_asked_in_its_own_words_and_said_to_differ(
    tmp_path: Path,
) -> None:
    choice = tmp_path / "choice.jsonl"
    choice.write_text('{"id": "c", "question": "Which?", "answer": "A"}\n')
    own = {"name": "own", "path": str(choice), "grader": "choice", "prompt": "Choose. {question}"}
    same = {"name": "same", "path": str(choice), "prompt": BOXED}
    benchmarks = [{"name": "letters", "path": str(choice), "grader": "choice"}, own, same]
    recipe = made(tmp_path, "plain model", evaluate={"benchmarks": benchmarks, "max_tokens": 4})
    settled = instructed(recipe, Path(recipe.model), load_problems(recipe.problems))
    entries = resolve(settled.evaluate)
    assert [user_turn(entry, settled.prompt) for entry in entries] == [LETTER, "Choose. {question}", BOXED]
    lines = differing(entries, settled.prompt)
    assert [line.partition(":")[0] for line in lines] == ["letters", "own"]
    assert all(repr(BOXED) in line for line in lines)
    assert previewed(recipe, tmp_path / "run")["prompts_differ"] == lines
    assert plan_recipe(recipe, tmp_path / "none", calibrates=False).prompts_differ == lines
    told: list[str] = []
    pipeline.run_stage(recipe, tmp_path / "run", "evaluate", lambda event: told.append(getattr(event, "text", "")))
    assert [line for line in told if "prompt of its own" in line] == lines


def test_a_run_asks_a_benchmark_of_the_other_kind_as_its_recipe_does(tmp_path: Path) -> None:
    """Its recipe.json names the instruction that the recipe left unset."""
    choice = tmp_path / "choice.jsonl"
    choice.write_text('{"id": "c", "question": "Which?", "answer": "A"}\n')
    evaluate = {"benchmarks": [{"name": "letters", "path": str(choice), "grader": "choice"}], "max_tokens": 4}
    for case, wanted in (("plain model", LETTER), ("the recipe's own", None)):
        folder = tmp_path / case
        folder.mkdir()
        recipe = made(folder, case)
        pipeline.run_stage(recipe, folder / "run", "generate")
        of_run = recipe_of(RunDir(folder / "run"))
        assert of_run.prompt.instruction == CASES[case][4]
        for start in (recipe, of_run):
            later = Recipe.model_validate({**start.dump(), "evaluate": evaluate})
            job = pipeline.prepare(later, folder / "run")
            assert job.recipe.evaluate.benchmarks[0].prompt == wanted


def test_a_run_that_asked_a_benchmark_in_the_problems_words_stays_as_it_is(tmp_path: Path) -> None:
    choice = tmp_path / "choice.jsonl"
    choice.write_text('{"id": "c", "question": "Which?", "answer": "A"}\n')
    benchmark = {"name": "letters", "path": str(choice), "grader": "choice"}
    recipe = made(tmp_path, "plain model", evaluate={"benchmarks": [benchmark], "max_tokens": 4})
    run = RunDir(tmp_path / "run")
    write_json(run.recipe, {**recipe.dump(), "prompt": {**recipe.dump()["prompt"], "instruction": BOXED}})
    assert pipeline.prepare(recipe_of(run), run.root).recipe.evaluate.benchmarks[0].prompt is None


def test_an_instruction_without_a_question_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("model: m\nproblems: {builtin: arithmetic}\nprompt: {instruction: Solve it.}\n")
    assert_fails(upft("plan", "r.yaml"), 2, "r.yaml:3: prompt.instruction: 'Solve it.' has no {question} in it")
