"""Grading: tables of answers right and wrong, laws over arbitrary text, and recorded data where it is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.answers import KINDS, STATED
from hypothesis import example, given, settings
from hypothesis import strategies as st

from upft_mlx.grade import symbolic
from upft_mlx.grade.correct import extract_answer, is_correct, normalize_answer, normalize_gold

EXTRACTED = [
    (r"First \boxed{3}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"), (r"\boxed{5} and then \boxed{6", "5"),
    (r"\fbox{7} is what I mean, not 8.", "7"), (r"\boxed{\boxed{9}}", r"\boxed{9}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"), (r"\boxed{4}. The 5 of you, write it in \boxed{}.", "4"),
    (r"\boxed{2 + \boxed{9}}", r"2 + \boxed{9}"), (r"so $x = \boxed{1}$ or $x = \boxed{2}$", "1, 2"),
    (r"$\boxed{1}$, $\boxed{1}$", "1"), (r"\boxed{3} is wrong, rather \boxed{4}", "4"),
    (r"\boxed{8}" + "\n#### 9", "8"), ("He has 3 of them.\n#### 1,234\n", "1,234"),
    ("#### 12\nThen I checked it: 3 * 4.", "12"), ("#### Step 2\nSo it is 17 in all.", "17"),
    ("The answer is 12. Let me check: 7 + 5.", "12"), ("A wrong answer is 5. In the end there are 7.", "7"),
    ("The answer to the question is: 18 dollars per day.", "18 dollars per day"),
    ("Final Answer: The final answer is $x+1$. I hope it is correct.\n1\n2\n3\n4", "x+1"),
    ("The answer is:\n\n\\[\n\\frac{3}{4}\n\\]", r"\frac{3}{4}"),
    ("The answer is \\[\n\\frac{3}{4}\n\\]", r"\frac{3}{4}"),
    ("The answer is 5, says one.\nHm.\nWait.\nNo.\nThat makes 7.", "7"),
    ("The answer is $\\text{June 20}$.", r"\text{June 20}"), ("The answer is 5 + 3 = 8 apples", "8"),
    ("She works a lot.\nA: 42", "42"), ("It costs $18 and $5 more, so $23 in all", "$23"),
    ("thus $y = 3$ and so $x = 2y + 1$.", "x = 2y + 1"), ("there are 7/14 of them left, so -3", "-3"),
    ("so (200)-150 km", "150"), ("thus $y = 3$, which makes 12 in all", "12"),
    ("It costs 5 $ more than the other $ bag", "5"), (r"\frac{8}{3}", r"\frac{8}{3}"), ("p - q", "p - q"),
    ("I do not know.", None), ("", None), (r"\boxed{ }", None), ("Yes.", "Yes."), ("**New York**", "**New York**"),
    ("It takes 5 1/2 hours.", "5 1/2"), ("They drink 2\u00bd cups in all", "2\u00bd"), ("\u00bd is left", "\u00bd"),
    (r"It takes 5\frac{1}{2} hours.", r"5\frac{1}{2}"), ("So it is 1 1/2 or 2 3/4", "1 1/2, 2 3/4"),
    ("In 2020 1/2 of them left.", "1/2"), ("So it is 1,234 1/2 in all.", "1,234 1/2"),
    ("The answer is 5 1/2 hours in total", "5 1/2 hours in total"),
    # as models of other families write it
    ("# Answer\n\n42", "42"), ("# Answer\n\n\\text{June 20}", r"\text{June 20}"),
    ("**Final Answer**\n\n$x + 1$", "x + 1"),
    ("### Final Answer:\n\n**17** apples", "17 apples"),
    ("<think>\nIs it \\boxed{5}? No.\n</think>\n\nIt is \\boxed{7}.", "7"), ("<think>3 + 4</think>So **7**.", "7"),
    ("<think>Perhaps \\boxed{5}.\n</think>\nThe answer is 7.", "7"), ("<think>\\boxed{5}\n</think>\n", "5"),
    ("<think>4</think> <answer> 12 </answer>", "12"), ("[ANSWER] 12 [/ANSWER]", "12"),
    ("<answer>The answer is $\\frac12$.</answer>", r"\frac12"), ("#### The answer is 18", "18"), ("#### **18**", "18"),
    ("So there are **18** eggs left after 3 days.", "18"), ("**Step 3:** 4 + 5 = 9", "9"),
    ("Thus it is \\boxed 5.", "5"),
    ("The answer is 18.\n\nQ: Bo has 5 and gets 4.\nA: The answer is 9.", "18"),
    ("#### 4\n\nQuestion: 2 + 7?\n#### 9", "4"),
    ("The answer is 18.<|im_end|>\n<|im_start|>user\nand 5?", "18"), ("Question: 2 + 2?\nIt is 4.", "4"),
    ("**Answer: 42**", "42"), ("ANSWER: 42", "42"), ("The final answer would be 42.", "42"),
    ("\u7b54\u6848\u662f 42\u3002", "42"),
    ("La respuesta es 12.", "12"), ("R\u00e9ponse : 12", "12"), ("Die Antwort ist: 12", "12"),
    ("So far \\boxed{255}. Then 200 more: the final answer is $455$. I hope it is correct.", "455"),
    ("\\boxed{5}\n\nThe final answer is boxed above.", "5"),
    ("The answer must be a multiple of 3.\nSo it is 27.", "27"),
    # cut off: an answer that was begun is none
    (r"Thus it is \boxed{42", None), (r"Thus it is \boxed{\frac{1}{2}", None), (r"There are 4 of 5: \boxed{", "5"),
]  # fmt: skip

RIGHT = [
    ("1,080", "1080"), ("$18.00", "18"), (r"\$32,\!348", "32348"), ("14{,}916", "14916"), ("1 000", "1000"),
    ("18 dollars", "18"), (r"10\text{ units}", "10"), (r"15\mbox{ cm}^2", "15"), ("5 square feet", "5"),
    ("2 million", "2000000"), ("073", "73"), ("-5", r"$-5$"), ("1.5e3", "1500"), (r"1.8 \times 10^{5}", "180000"),
    (".5", r"\frac12"), ("0.5", "1/2"), (r"\dfrac{2}{4}", "0.50"), (r"1\frac{4}{5}", "9/5"), ("1 4/5", "1.8"),
    ("$2 1/4", "2.25"), ("1,234 1/2", "1234.5"), ("$1,234 1/2", r"1234\frac12"), ("5th", "5"), ("22nd", "22"),
    ("0.333333333333", "1/3"), ("0.30000000000000004", "0.3"), (r"-\frac{3}{4}", r"\frac{-3}{4}"),
    (r"30^\circ", "30"), ("30 degrees", r"30^{\circ}"), (r"50\%", "0.5"), (r"50\%", r"50 \%"), (r"50\%", "50 percent"),
    (r"\text{(C)}", "C"), (r"\text{Even}", "even"), (r"\text{Evelyn}", "Evelyn"), ("x = 5", "5"), ("5", "x=5"),
    (r"x \in [-2, 7]", "[-2,7]"), ("2 + 3 = 5", "5"), (r"\frac{1}{3} \approx 0.33", r"\frac{1}{3}"),
    ("7, 5, 3", "3, 5, 7"), (r"\{1, 2\}", "2,1"), (r"2 \text{ and } 1", "1, 2"),
    ("(1, 0.5)", r"\left(1, \frac12\right)"), (r"1 \pm \sqrt{19}", r"1 - \sqrt{19}, 1 + \sqrt{19}"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,+\infty)\cup(-\infty,2)"),
    (r"\begin{bmatrix} 1 \\ \frac12 \end{bmatrix}", r"\begin{pmatrix} 1 \\ 0.5 \end{pmatrix}"),
    ("x = 1, y = 2", "(1, 2)"), ("y = 2, x = 1", "x = 1, y = 2"), ("y = 2, x = 1", "(1, 2)"), ("4210_{5}", "4210_5"),
    ("(x-1)(x+1)", "x^2 - 1"), (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt2}"), ("9i + 6", "6+9i"), (r"\pi 7", r"7\pi"),
    ("2x - y + 3 = 0", "y = 2x + 3"), (r"\frac{\cos x}{\sin x}", r"\cot x"), ("2^{4950}", "2^{4950}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2004!}"), (r"5\mathrm{i}", "5i"),
]  # fmt: skip

WRONG = [
    ("19", "18"), ("1800", "18"), ("-18", "18"), ("2 million", "2"), ("0.33", "1/3"), ("0.0000674", ".0000672"),
    ("100000000000000000001", "100000000000000000002"), ("5x", "5"), ("14/5", "9/5"), ("12:30", "12:00"),
    ("0.333334", "1/3"), ("0.000067", r"\frac{1}{15000}"), (r"x\%", "x"),
    (r"10\%", "10"), ("10", r"10\%"), ("0.1", "10"), ("52_9", "52_8"), ("52", "52_8"), ("42", "52_8"),
    ("1,2", "(1,2)"), ("(1,2)", "1,2"), (r"\{1,2\}", "(1,2)"), ("(2,1)", "(1,2)"),
    ("(3,4)", "(3,4]"), ("[3,4]", "(3,4]"), ("2r^2", "2R^2"), ("x = 1, y = 2", "a = 1, b = 2"),
    ("1, 2, 3", "1, 2"), ("1", "1, 2"), ("1, 1", "1, 2"), ("n = 45, k = 2", "k = 45, n = 2"), ("y = 5", "x = 5"),
    ("32, 348", "32348"), (r"1 + \sqrt{19}", r"1 \pm \sqrt{19}"), ("(-2, 2)", r"(-\infty, 2) \cup (3, \infty)"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("seat", r"\text{east}"), (r"\text{odd}", r"\text{even}"), ("D", r"\text{(C)}"), ("x", "X"),
    ("x^2 + 1", "x^2 - 1"), (r"1 + \frac{1}{e}", r"1 - \frac{1}{e}"), (r"\sqrt{51}", r"\sqrt{53}"),
    ("11a+c", "7 = 11a+c"),
    ("2x + y = 4", "2x + y = 3"), ("x > 5", "x < 5"), (r"0.0000001", r"\frac{1}{2^{98}}"), ("", "18"), ("18", ""),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "answer"), EXTRACTED)
def test_where_the_answer_stands(completion: str, answer: str | None) -> None:
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(("answer", "gold"), RIGHT)
def test_equal_answers_are_right(answer: str, gold: str) -> None:
    assert is_correct(rf"Thus it is $\boxed{{{answer}}}$.", gold)


@pytest.mark.parametrize(("answer", "gold"), WRONG)
def test_other_answers_are_wrong(answer: str, gold: str) -> None:
    assert not is_correct(rf"Thus it is $\boxed{{{answer}}}$.", gold)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_each_kind(kind: str) -> None:
    right, wrong = KINDS[kind]
    refused = [pair for pair in right if not is_correct(rf"So it is $\boxed{{{pair[0]}}}$.", pair[1])]
    accepted = [pair for pair in wrong if is_correct(rf"So it is $\boxed{{{pair[0]}}}$.", pair[1])]
    assert (refused, accepted) == ([], [])


def test_answers_that_stand_in_sentences() -> None:
    right, wrong = STATED
    refused = [pair for pair in right if not is_correct(*pair)]
    accepted = [pair for pair in wrong if is_correct(*pair)]
    assert (refused, accepted) == ([], [])


TEXTS = [
    *("Apollo 11", "World War 2", "5 is odd", "It is not 34.", "It isn't 34.", "It is 3 or 4.", "If x is 3", "No."),
    *("x is 3, y is 4", "It is at least 3.", "It is 3 + 4.", "The answer is 3x.", "The base is 2 squared.", "Is it 3?"),
    *(
        "Shakespeare wrote it. It has 5 acts.",
        "He was born in 1945.",
        "It is 3 times larger.",
        "The answer is 7 and a half.",
    ),
]
"""Golds that name a number and are none."""


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("She sells 9 eggs.\nThat is <<9*2=18>>18.\n#### 18", "18"),
        ("#### 1,080", "1,080"),
        (r"Hence $x = \boxed{\frac{3}{2}}$, as claimed.", r"\frac{3}{2}"),
        (r"It is \boxed{15\frac{39}{40}}, or \boxed{\frac{639}{40}} inches", r"\frac{639}{40}"),
        (r"$\frac{1}{2}$", r"\frac{1}{2}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\left( 3, \frac{\pi}{2} \right)"),
        ("1,-2", "1,-2"),
        (" 18 ", "18"),
        ("", ""),
        ("So it is 34.", "34"),
        ("It's 34!", "34"),
        ("There are 34 apples left.", "34 apples"),
        ("Mia is 12 years old.", "12 years"),
        ("That makes 1,234.", "1,234"),
        ("It costs $5.50 in total.", "$5.50"),
        ("We add 17 and 17. So it is 34.", "34"),
        *((text, text) for text in TEXTS),
    ],
)
def test_gold_answers_are_read_in_their_own_format(text: str, gold: str) -> None:
    assert normalize_gold(text) == gold
    assert normalize_gold(gold) == gold


@pytest.mark.parametrize("gold", ["So it is 34.", "There are 34 apples left.", "We add 17 and 17. So it is 34."])
def test_a_short_reply_as_gold_is_graded_by_its_number(gold: str) -> None:
    assert all(is_correct(text, gold) for text in (r"\boxed{34}", "So it is 34.", "17 + 17 = 34, so 34 apples.", gold))
    assert not any(is_correct(text, gold) for text in (r"\boxed{17}", "So it is 43.", "It is not 34.", "34 or 35", ""))


def test_the_percent_sign_is_a_unit_on_request_and_outside_the_box() -> None:
    assert not is_correct(r"\boxed{60\%}", "60")
    assert is_correct(r"\boxed{60\%}", "60", percent_as_unit=True)
    assert is_correct(r"\boxed{60}", r"60\%", percent_as_unit=True)
    assert is_correct(r"\boxed{60\%}", "0.6", percent_as_unit=True)
    assert not is_correct(r"\boxed{61\%}", "60", percent_as_unit=True)
    assert is_correct(r"$\boxed{60}\%$", "60")
    assert is_correct(r"$\boxed{60}\%$", r"60\%")


@pytest.mark.parametrize(
    ("answers", "groups"),
    [
        (("0.5", r"\frac12", "x = 1/2", r"$\dfrac{1}{2}$", ".50"), 1),
        (("1, 2", r"\{2, 1\}", r"2 \text{ and } 1"), 1),
        (("(1,2)", "1,2", "[1,2]", "(2,1)"), 4),
        ((r"10\%", "10", "10 percent", "0.1"), 2),
        (("14{,}916", "14916", r"14,\!916.0", r"\$14,916"), 1),
        ((r"\sqrt3", r"\sqrt{3}"), 1),
        ((r"\text{(C)}", "C", "(C)"), 1),
        ((r"[1,2) \cup (3,+\infty)", r"(3,\infty) \cup [1,2)"), 1),
        ((r"\begin{pmatrix} 0.5 \\ 1 \end{pmatrix}", r"\begin{bmatrix}\frac12\\1\end{bmatrix}"), 1),
        (("k = 1, n = 2", "n = 1, k = 2"), 2),
        ((r"\text{Even}", "even", "EVEN"), 1),
        (("x", "X", "x^2", "x ^ 2"), 3),
    ],
)
def test_equal_answers_share_a_key(answers: tuple[str, ...], groups: int) -> None:
    assert len({normalize_answer(answer) for answer in answers}) == groups


commands = [r"\frac", r"\sqrt", r"\pm", r"\cup", r"\in ", r"\left(", r"\text{", r"\begin{pmatrix}", r"\end{pmatrix}"]
words = ["####", "answer is ", "answer:", "and", "12", "&", "\\", "\\\\", r"\boxed{"]
pieces = st.sampled_from([*"0123456789xyi+-*/^_=<>(){}[],.;:%$! \n", *commands, *words])
latex = st.lists(pieces, max_size=24).map("".join)


@settings(max_examples=100)
@given(st.text() | latex, st.text() | latex)
@example("\\boxed{" * 2000, "}" * 2000)
@example(r"\boxed{" + "(" * 300 + "1,2" + ")" * 300 + "}", "(" * 300 + "1,2" + ")" * 300)
@example(r"\boxed{1/0}", r"\frac{0}{0}")
@example(r"\boxed{9^{9^{9^9}}}", "9^{9^{9^8}}")
@example("9" * 5000, "9" * 4999)
@example("\u0663\u00b2", "\u0663")
def test_no_text_raises(completion: str, gold: str) -> None:
    assert is_correct(completion, gold) in (True, False)
    assert isinstance(normalize_answer(gold), str)


@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
def test_fractions_are_compared_exactly(a: Any, b: Any) -> None:
    text = rf"\boxed{{\frac{{{a.numerator}}}{{{a.denominator}}}}}"
    assert is_correct(text, str(a))
    assert is_correct(text, str(b)) == (a == b)


@given(st.integers(0, 10**9))
def test_thousands_separators_and_cents_change_nothing(n: int) -> None:
    for text in (f"{n:,}", f"${n:,}.00", f"{n} apples", f"The answer is {n:,}.", f"so there are {n:,}", f"#### {n:,}"):
        assert is_correct(text, str(n))
        assert not is_correct(text, str(n + 1))


def test_plain_numbers_and_tuples_need_no_sympy() -> None:
    code = (
        "import sys; from upft_mlx.grade import is_correct\n"
        "assert is_correct('#### 18', '18') and not is_correct('#### 19', '18')\n"
        r"assert is_correct(r'\boxed{(1, \frac12)}', '(1, 0.5)') and not is_correct(r'\boxed{(1, 2)}', '(2, 1)')"
        "\nassert not {'sympy', 'math_verify'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=600)


def test_any_thread_grades_and_nothing_is_printed() -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor as Pool; from upft_mlx.grade import is_correct\n"
        "with Pool(1) as pool: print(pool.submit(is_correct, 'so (x+2)(x-2) = $x^2-4$', '(x+2)(x-2)').result())"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=600)
    assert (done.stdout, done.stderr) == ("True\n", "")


HEAVY = ["9^{9^9}", "2^{99999}", "(x+y)^{99}", "x^{5000} + 1", r"\exp(6690)", "999!", "(9!)!", "5!!"]
HEAVY += [r"\int_0^1 x dx", r"\theta^{\frac{|5921|}{2}}", "(" * 9 + "x" + ")" * 9, "x" * 500, "1" * 50, r"\sum^{999} k"]


@pytest.mark.parametrize("answer", HEAVY)
def test_what_could_take_long_is_refused(answer: str) -> None:
    assert symbolic.too_costly(answer)


@pytest.mark.parametrize("answer", ["7z^{96}(4z+1)", "2^{4950}", "6r^2-4r-24", r"\frac{3\sqrt{3}}{4}", "(x+1)^{10}"])
def test_what_the_benchmarks_ask_for_is_not_refused(answer: str) -> None:
    assert not symbolic.too_costly(answer)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_recorded_gsm8k_flags_are_met(shared: Path) -> None:
    rows = read(shared / "data" / "grading" / "sol_gsm8k_openai.jsonl")
    met = sum(is_correct(row["response"], row["gold"]) == row["is_correct"] for row in rows)
    assert met / len(rows) >= 0.999


def test_math500s_gold_answers_and_solutions_are_right(shared: Path) -> None:
    for row in read(shared / "data" / "benchmarks" / "math500.jsonl"):
        assert normalize_gold(row["solution"]) == row["answer"]
        assert is_correct(rf"\boxed{{{row['answer']}}}", row["answer"])
        assert is_correct(f"The answer is ${row['answer']}$.", row["solution"])


def test_pairs_from_public_reports(shared: Path) -> None:
    rows = read(shared / "data" / "grading" / "answer_pairs.jsonl")
    wrong = [row["id"] for row in rows if is_correct(row["completion"], row["gold"]) != row["correct"]]
    assert (len(rows), wrong) == (131, [])


def test_labelled_cases_of_other_graders(shared: Path) -> None:
    """With the options that each names; contradicted on purpose: `{1, 3}` is no interval, 1 - 1/e no 1 + 1/e."""
    rows = read(shared / "data" / "grading" / "grader_cases.jsonl")
    names = ("match_types", "precision", "strict", "allow_set_relation_comp")
    options: list[dict[str, Any]] = [{name: row.get(name) for name in names} for row in rows]
    met = [
        is_correct(row["prediction"], row["gold"], **given) == row["expected"]
        for row, given in zip(rows, options, strict=True)
    ]
    assert len(rows) == 285
    assert sum(met) / len(rows) >= 0.98
