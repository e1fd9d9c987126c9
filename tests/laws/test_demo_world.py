"""Laws of the demo's world: splits, answers, voices; and that the shipped files are what it yields."""

import json
import re
import statistics
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest

from upft_mlx.demo import world

DEMO = Path(world.__file__).parent
MODEL = DEMO / "model"
FILES = {
    "upft": (DEMO / "train.jsonl", world.TRAIN_ROWS),
    "evaluation": (DEMO / "test.jsonl", world.TEST_ROWS),
}
TEMPLATE = (
    " Please provide the initial step towards resolving the question. This step may serve as a foundation"
    " but might not encompass the entire solution."
)

# Read from the question's words, not from the generator: numbers in the order of the text, their meaning.
READINGS: list[tuple[str, Callable[[int, int, int], int]]] = [
    (r"buys .* a bag for|dollar bag", lambda a, b, c: a * b + c),
    (r"gets .* gives|makes .* takes", lambda a, b, c: a + b - c),
    (r"friends share|equal rows", lambda a, b, c: (a + b) // c),
    (r"break\. The rest|keeps", lambda a, b, c: (a - b) // c),
    (r"loses", lambda a, b, c: a * b - c),
    (r"pays with", lambda a, b, c: c - a * b),
    (r"has \d+ dollars and buys", lambda a, b, c: a - b * c),
    (r"times as many", lambda a, b, c: a * b + c),
    (r"boxes of \d+ more|here and", lambda a, b, c: a + b * c),
]


def read(question: str) -> int:
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    (meaning,) = [meaning for pattern, meaning in READINGS if re.search(pattern, question)]
    return meaning(*numbers)


def boxed(text: str) -> str:
    found = re.fullmatch(r"[^\\]*\\boxed\{(\d+)\}", text)
    assert found, text
    return found[1]


@pytest.fixture(scope="module")
def corpus() -> list[world.Problem]:
    return list(islice(world.stream("pretrain"), 1000))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


# ---- files and splits


@pytest.mark.parametrize("split", FILES)
def test_the_shipped_file_is_what_the_generator_yields(split: str) -> None:
    path, count = FILES[split]
    assert path.read_text(encoding="utf-8") == world.rows(split, count)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == count
    assert rows[0].keys() == {"id", "question", "answer"}
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == count


def test_golden_problem_and_split() -> None:
    first = world.problems("upft", 1)[0]
    assert first == world.Problem(
        "upft-0000", "buying", (5, 9, 6),
        "Ben takes 5 shells at 9 dollars each and a 6 dollar bag. How many dollars is that in all?", "51",
    )  # fmt: skip
    assert world.split_of("buying", (5, 9, 6)) == "upft"
    assert list(next(world.stream("upft")).numbers) == [5, 9, 6]


def test_splits_share_neither_numbers_nor_questions(corpus: list[world.Problem]) -> None:
    drawn = {split: list(islice(world.stream(split, seed=1), 2000)) for split in world.SHARES}
    drawn["pretrain"] += corpus
    drawn["upft"] += world.problems("upft", world.TRAIN_ROWS)
    drawn["evaluation"] += world.problems("evaluation", world.TEST_ROWS)
    facets: list[Callable[[world.Problem], object]] = [lambda p: (p.kind, p.numbers), lambda p: p.question]
    for facet in facets:
        seen = [{facet(problem) for problem in problems} for problems in drawn.values()]
        assert len(set.union(*seen)) == sum(map(len, seen))


def test_no_numbers_of_a_kind_come_twice_in_a_data_set() -> None:
    for split, (_, count) in FILES.items():
        problems = world.problems(split, count)
        assert len({(problem.kind, problem.numbers) for problem in problems}) == count


def test_the_shares_of_the_splits_hold() -> None:
    triples = [(x, y, z) for x in range(2, 22) for y in range(2, 22) for z in range(2, 22)]
    splits = [world.split_of("buying", triple) for triple in triples]
    for split, tenths in world.SHARES.items():
        assert splits.count(split) / len(splits) == pytest.approx(tenths / 10, abs=0.015)


def test_kinds_are_balanced_and_worded_in_more_than_one_way() -> None:
    for split, (_, count) in FILES.items():
        kinds = [problem.kind for problem in world.problems(split, count)]
        assert {kinds.count(kind) for kind in world.KINDS} == {count // 8}
    assert all(len(set(kind.questions)) >= 2 for kind in world.KINDS.values())


# ---- answers


def test_answers_are_right_by_reading_the_question(corpus: list[world.Problem]) -> None:
    for problem in chain(corpus, *(world.problems(split, count) for split, (_, count) in FILES.items())):
        assert read(problem.question) == int(problem.answer), problem
        assert 1 <= int(problem.answer) < world.LIMIT


@pytest.mark.parametrize(
    ("kind", "numbers", "answer"),
    [
        ("buying", (4, 6, 9), 33),
        ("giving", (12, 5, 3), 14),
        ("sharing", (12, 6, 3), 6),
        ("packing", (54, 38, 2), 8),
        ("losing", (9, 2, 14), 4),
        ("change", (3, 6, 20), 2),
        ("times", (9, 2, 16), 34),
        ("mixed", (8, 2, 19), 35),
        ("sharing", (12, 6, 4), None),  # does not divide
        ("change", (3, 6, 15), None),  # not enough
        ("change", (3, 6, 18), None),  # nothing back
        ("buying", (9, 12, 30), None),  # 138
        ("giving", (80, 50, 40), None),  # 130 in between
    ],
)
def test_answer_of(kind: str, numbers: world.Numbers, answer: int | None) -> None:
    assert world.answer_of(kind, numbers) == answer


# ---- voices


def test_a_solution_is_the_same_each_time(corpus: list[world.Problem]) -> None:
    assert [world.solution(p, "hasty") for p in corpus] == [world.solution(p, "hasty") for p in corpus]
    assert any(world.solution(p, "hasty", 0) != world.solution(p, "hasty", 1) for p in corpus[:50])


@pytest.mark.parametrize("voice", world.VOICES)
def test_every_written_line_of_arithmetic_is_right_and_the_box_ends_the_text(
    corpus: list[world.Problem], voice: str
) -> None:
    compute = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    for problem in corpus:
        text = world.solution(problem, voice)
        lines = re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", text)
        assert len(lines) == (0 if voice == "direct" else 2)
        assert all(compute[op](int(a), int(b)) == int(c) for a, op, b, c in lines), text
        assert not lines or lines[-1][3] == boxed(text)


@pytest.mark.parametrize("voice", world.VOICES)
def test_a_voice_takes_the_wrong_operation_as_often_as_it_says(corpus: list[world.Problem], voice: str) -> None:
    texts = [world.solution(problem, voice) for problem in corpus]
    if voice == "direct":  # shows no operation
        assert all(boxed(text) == problem.answer for text, problem in zip(texts, corpus, strict=True))
        return
    firsts = [re.findall(r"\d([-+*/])\d", text)[0] for text in texts]
    wrong = [first != world.KINDS[problem.kind].first for first, problem in zip(firsts, corpus, strict=True)]
    assert statistics.mean(wrong) == pytest.approx(world.VOICES[voice].wrong, abs=0.03)
    for text, problem, slip in zip(texts, corpus, wrong, strict=True):
        assert slip or boxed(text) == problem.answer


def test_the_planner_announces_what_it_does(corpus: list[world.Problem]) -> None:
    for problem in corpus[:200]:
        text = world.solution(problem, "planner")
        verbs = [world.VERBS[op] for op in re.findall(r"\d([-+*/])\d", text)]
        assert text.startswith(f"The plan: first {verbs[0]}, then {verbs[1]}.\n")


def test_shares_of_the_voices_and_their_openings(corpus: list[world.Problem]) -> None:
    assert sum(voice.share for voice in world.VOICES.values()) == pytest.approx(1)
    wrong = [world.VOICES[voice].wrong for voice in ("planner", "stepper", "hasty")]
    assert max(wrong[:2]) < 0.1 < 0.8 < wrong[2]
    heard = {voice: {world.voice_of(world.solution(p, voice)) for p in corpus} for voice in world.VOICES}
    assert heard == {"planner": {"planner"}, "stepper": {"first"}, "hasty": {"first"}, "direct": {"direct"}}
    assert world.voice_of("Hello") == "other"


# ---- in tokens


def lengths(tokenizer: Any, problems: list[world.Problem], voice: str) -> list[int]:
    return [len(tokenizer.encode(world.solution(problem, voice)).ids) for problem in problems]


def test_careful_and_careless_solutions_have_the_same_lengths(tokenizer: Any, corpus: list[world.Problem]) -> None:
    means = {voice: statistics.mean(lengths(tokenizer, corpus, voice)) for voice in world.VOICES}
    assert max(means.values()) - min(means.values()) < 0.75, means
    assert all(20 < mean < 40 for mean in means.values())
    groups = {}
    for name, members in {"careful": ("planner", "stepper"), "careless": ("hasty", "direct")}.items():
        shares = {voice: world.VOICES[voice].share for voice in members}
        groups[name] = sum(share * means[voice] for voice, share in shares.items()) / sum(shares.values())
    assert groups["careful"] == pytest.approx(groups["careless"], abs=0.3), groups


def test_stepper_and_hasty_lengths_have_one_distribution(tokenizer: Any, corpus: list[world.Problem]) -> None:
    careful, careless = (lengths(tokenizer, corpus, voice) for voice in ("stepper", "hasty"))
    below = [sum(a <= n for a in careful) - sum(a <= n for a in careless) for n in range(60)]
    assert max(map(abs, below)) / len(corpus) < 0.1


def test_prefixes_differ_between_voices(tokenizer: Any, corpus: list[world.Problem]) -> None:
    for problem in corpus[:300]:
        heads = {voice: tokenizer.encode(world.solution(problem, voice)).ids[:12] for voice in world.VOICES}
        same = heads["stepper"] == heads["hasty"]
        assert len({tuple(head) for head in heads.values()}) == 4 - same
        assert same == (world.solution(problem, "stepper") == world.solution(problem, "hasty"))


def test_digits_are_single_and_text_survives(tokenizer: Any, corpus: list[world.Problem]) -> None:
    assert tokenizer.encode("4096*17=69632").tokens == list("4096*17=69632")
    for text in (corpus[0].question + TEMPLATE, "Grüße, 世界!\n\\boxed{7}"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode(TEMPLATE).ids) <= 26


# ---- the shipped model's folder


def test_the_model_is_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 1_000_000


def test_chatml_without_a_default_system_turn() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(MODEL))
    user = {"role": "user", "content": "Hi 12"}
    asked = "<|im_start|>user\nHi 12<|im_end|>\n<|im_start|>assistant\n"

    def text(*turns: dict[str, str], ask: bool = True) -> str:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=ask))

    assert text(user) == asked
    system = {"role": "system", "content": "Be brief."}
    assert text(system, user) == "<|im_start|>system\nBe brief.<|im_end|>\n" + asked
    assert text(user, {"role": "assistant", "content": "Yes"}, ask=False) == asked + "Yes<|im_end|>\n"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert json.loads((MODEL / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id


def test_the_model_solves_problems_that_it_has_not_seen() -> None:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import batch_generate

    model, tokenizer = load(str(MODEL))[:2]
    model.set_dtype(mx.float32)
    problems = world.problems("upft", 32)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": p.question}], add_generation_prompt=True)
        for p in problems
    ]
    texts = batch_generate(model, tokenizer, prompts, max_tokens=48).texts
    assert sum(f"\\boxed{{{p.answer}}}" in text for p, text in zip(problems, texts, strict=True)) >= 20
