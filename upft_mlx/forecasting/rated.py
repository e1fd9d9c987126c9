"""Problems to solutions.jsonl with a rule that rates prefixes, or with a few answers.

No more is decoded than is needed: prefixes, what rates them, and whole solutions of the structure rows alone, each from
the prefix that was picked. Everything is appended chunk by chunk and can be continued.

    prefixes.jsonl       `generate.samples` prefixes per problem
    continuations.jsonl  what `rollouts` judges them by
    continued.jsonl      the picked prefixes of structure rows, continued to whole solutions

Problems whose answers are used (answers/) are not sampled again: the right ones of their samples are taken over.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import Wanted, labelled, most_sampled, structure_of, with_end
from upft_mlx.dataset.selection import mean_logprob, pick, said
from upft_mlx.distributed.seam import alone
from upft_mlx.errors import TrainingError
from upft_mlx.events import Observer, Progress, ignore
from upft_mlx.forecasting.answers import Answers, remove_other_graders
from upft_mlx.forecasting.choice import read_probe
from upft_mlx.grade.correct import VERSION
from upft_mlx.grade.graders import Task, grade, grader_of
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Recipe
from upft_mlx.recipe.studies import SCORED
from upft_mlx.rows import Continuation, Solution, read_rows, write_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Completion, Request
from upft_mlx.sampling.generate import Generated, generate
from upft_mlx.sampling.resumed import sample_rows
from upft_mlx.sampling.sampler import Sampler, sampling_for


def generate_rated(
    recipe: Recipe,
    loaded: Loaded,
    problems: Sequence[Problem],
    run: RunDir,
    notify: Observer = ignore,
) -> Generated:
    """Sample what is missing into solutions.jsonl; for `probe`, the stages answers and choose are done.

    Raises:
        TrainingError: several ranks work together, or the probe cannot tell right from wrong prefixes.
        RowsError: a file of samples is malformed.
    """
    if not alone():
        raise TrainingError(
            f"{recipe.prefix.selection} samples on one machine only",
            "run `upft generate` on one, then the other stages on all",
            field="prefix.selection",
        )
    return _Rated(recipe, loaded, problems, run, notify).work()


def unchecked(recipe: Recipe, problems: Sequence[Problem]) -> list[Wanted]:
    """What is sampled first, of the problems whose answers are not used."""
    known = frozenset(labelled(recipe, problems) if recipe.uses_answers else ())
    whole = structure_of(recipe, problems) if recipe.prefix.selection not in SCORED else frozenset[int]()
    return [
        Wanted(number, "full") if number in whole else Wanted(number, "prefix", recipe.generate.samples)
        for number in range(len(problems))
        if number not in known
    ]


class _Rated:
    """Samples, rates and continues."""

    def __init__(
        self,
        recipe: Recipe,
        loaded: Loaded,
        problems: Sequence[Problem],
        run: RunDir,
        notify: Observer,
    ) -> None:
        self.recipe, self.loaded, self.problems, self.run, self.notify = recipe, loaded, problems, run, notify
        self.rule, self.length = recipe.prefix.selection, most_sampled(recipe, "prefix")
        self.probe = read_probe(run, self.length) if self.rule == "probe" else None
        graded = Answers(recipe, problems, run).graded() if recipe.uses_answers else ()
        self.checked = {
            item.problem_id: [row for row, right in zip(item.solutions, item.right, strict=True) if right]
            for item in graded
        }
        """The right samples of each problem whose answer is used."""
        self.structure = structure_of(recipe, problems)
        self.wanted = unchecked(recipe, problems)
        g = recipe.generate
        self.sampler = Sampler(loaded, sampling_for(loaded, g.temperature, g.batch_size, g.top_p, g.top_k, g.stop))
        self.renderer = Renderer(loaded.tokenizer, recipe.prompt)
        self.grader = grader_of(problem.answer for problem in problems)
        self.questions = {problem.id: problem.question for problem in problems}
        self.files = {
            name: run.solutions.with_name(f"{name}.jsonl") for name in ("prefixes", "continuations", "continued")
        }

    def work(self) -> Generated:
        """All steps; the files in between go when solutions.jsonl is there."""
        view = copy.copy(self.run)
        view.solutions = self.files["prefixes"]
        view.partial = view.solutions.with_name("prefixes.partial.jsonl")
        first = generate(self.recipe, self.loaded, self.problems, self.wanted, view, self.notify)
        prefixes: dict[str, list[Solution]] = {}
        for row in read_rows(view.solutions, Solution):
            prefixes.setdefault(row.problem_id, []).append(row)
        scored = self._scored(prefixes)
        whole = self._continued(scored)
        write_rows(self.run.solutions, self._rows(scored, whole))
        rows = list(read_rows(self.run.solutions, Solution))
        beyond = sum(row.tokens for row in self._continuations())
        beyond += sum(len(row.completion_ids) for row in whole.values()) - self.length * len(whole)
        for path in self.files.values():
            path.unlink(missing_ok=True)
        return Generated(
            solutions=len(rows),
            full=sum(row.kind == "full" for row in rows),
            tokens_sampled=first.tokens_sampled + beyond,
            tokens_processed=first.tokens_processed + self.sampler.processed_tokens,
        )

    def _scored(self, prefixes: Mapping[str, list[Solution]]) -> dict[str, list[Solution]]:
        """Each problem's samples, with scores where the rule rates them."""
        prefixes = {**prefixes, **self.checked}
        if self.rule not in SCORED:
            return {name: [replace(row, logprob=None) for row in rows] for name, rows in prefixes.items()}
        if self.rule == "rollouts":
            return self._by_rollouts(prefixes)
        if self.rule == "prefix_confidence":
            return self._by_confidence(prefixes)
        return self._by_probe(prefixes)

    def _by_confidence(self, prefixes: Mapping[str, list[Solution]]) -> dict[str, list[Solution]]:
        """Prefixes as they were sampled; samples of the answers are whole, and their first tokens are read anew."""
        from upft_mlx.training.batches import Example
        from upft_mlx.training.loss import choose_modes
        from upft_mlx.training.token_loss import token_losses

        self.loaded.model.freeze()  # only the head of a frozen model can be computed in chunks
        modes, scored = choose_modes(self.loaded.model, dropout=False, checkpoint=False)[0], {}
        for name, rows in prefixes.items():
            if name in self.checked:
                prompt = self.renderer.asked(self.questions[name])
                ids = [with_end(row, self.loaded.eos_id)[: self.length] for row in rows]
                read = [Example(name, [*prompt, *part], len(prompt)) for part in ids]
                nats = token_losses(self.loaded.model, read, modes)
                scored[name] = [
                    replace(row, score=-sum(part) / max(1, len(part)), logprob=None)
                    for row, part in zip(rows, nats, strict=True)
                ]
            else:
                scored[name] = [rated_by_confidence(row) for row in rows]
        return scored

    def _by_probe(self, prefixes: Mapping[str, list[Solution]]) -> dict[str, list[Solution]]:
        from upft_mlx.forecasting.states import Reader

        assert self.probe is not None
        reader, scored = Reader(self.loaded), {}
        for done, (name, rows) in enumerate(prefixes.items(), start=1):
            prompt, ids = self.renderer.asked(self.questions[name]), [row.completion_ids for row in rows]
            scores = self.probe.rate(reader.states(prompt, ids, [self.length])[self.length].features) if rows else []
            scored[name] = [replace(row, score=s, logprob=None) for row, s in zip(rows, scores, strict=True)]
            self.notify(Progress("generate", done, len(prefixes), "problems", part="ratings"))
        return scored

    def _by_rollouts(self, prefixes: Mapping[str, list[Solution]]) -> dict[str, list[Solution]]:
        """The share of each prefix's continuations that are right or, without an answer, say what most say."""
        rows = [row for group in prefixes.values() for row in group]
        number = {problem.id: problem for problem in self.problems}
        open_rows = [row for row in rows if row.finish_reason != "stop"]
        requests = [
            self._request(row, self.recipe.prefix.rollouts, f"{row.problem_id}/{row.sample}") for row in open_rows
        ]

        def made(index: int, sample: int, completion: Completion) -> Continuation:
            row = open_rows[index]
            text = self.loaded.tokenizer.decode([*row.completion_ids, *completion.ids])
            answer = number[row.problem_id].answer
            right = answer is not None and grade(Task(text, answer, self.grader)).correct
            vote = said(text, self.grader)
            tokens = len(completion.ids)
            return Continuation(row.problem_id, row.sample, self.length, sample, right, tokens, vote, VERSION)

        remove_other_graders(self.files["continuations"], Continuation, self.notify, self.files["continued"])
        sample_rows(
            self.files["continuations"],
            self.sampler,
            requests,
            self.recipe.seed,
            made,
            "generate",
            self.notify,
        )
        found: dict[tuple[str, int], list[Continuation]] = {}
        for continuation in self._continuations():
            found.setdefault((continuation.problem_id, continuation.of), []).append(continuation)
        return {name: self._voted(number[name], group, found) for name, group in prefixes.items()}

    def _voted(
        self, problem: Problem, group: Sequence[Solution], found: Mapping[tuple[str, int], Sequence[Continuation]]
    ) -> list[Solution]:
        marks: dict[int, list[bool]] = {}
        answers = {
            row.sample: [c.said for c in found.get((row.problem_id, row.sample), ())]
            or [said(row.completion, self.grader)]
            for row in group
        }
        votes = Counter(answer for given in answers.values() for answer in given if answer is not None)
        most = votes.most_common(1)[0][0] if votes else None
        for row in group:
            judged = found.get((row.problem_id, row.sample), ())
            if problem.answer is None:
                marks[row.sample] = [answer is not None and answer == most for answer in answers[row.sample]]
            else:
                right = grade(Task(row.completion, problem.answer, self.grader)).correct
                marks[row.sample] = [c.correct for c in judged] or [right]
        return [replace(row, score=sum(marks[row.sample]) / len(marks[row.sample])) for row in group]

    def _continuations(self) -> Iterator[Continuation]:
        path = self.files["continuations"]
        return read_rows(path, Continuation) if path.exists() else iter(())

    def _request(self, row: Solution, samples: int, key: str) -> Request:
        """What goes on from a prefix."""
        question = self.questions[row.problem_id]
        left = max(1, self.recipe.generate.max_tokens - len(row.completion_ids))
        return Request([*self.renderer.asked(question), *row.completion_ids], left, samples, key)

    def _continued(self, scored: Mapping[str, Sequence[Solution]]) -> dict[str, Solution]:
        """The whole solution of each structure row that has only a prefix, by problem."""
        picked = []
        for item in self.wanted:
            if item.number in self.structure and item.kind == "prefix":
                rows = scored[self.problems[item.number].id]
                found = pick(self.rule, rows, self.length, None, self.grader)
                if found is not None and rows[found].finish_reason != "stop":
                    picked.append(rows[found])
        requests = [self._request(row, 1, f"{row.problem_id}/{row.sample}/whole") for row in picked]

        def made(index: int, _: int, completion: Completion) -> Solution:
            row, ids = picked[index], [*picked[index].completion_ids, *completion.ids]
            text = self.loaded.tokenizer.decode(ids)
            return Solution(
                row.problem_id,
                row.sample,
                "full",
                ids,
                text,
                completion.finish_reason,
                None,
                completion.stop_id,
                row.score,
            )

        sample_rows(self.files["continued"], self.sampler, requests, self.recipe.seed, made, "generate", self.notify)
        return {row.problem_id: row for row in read_rows(self.files["continued"], Solution)}

    def _rows(self, scored: Mapping[str, Sequence[Solution]], whole: Mapping[str, Solution]) -> Iterator[Solution]:
        """In the order of the problems; of a structure row the picked sample alone, whole."""
        for number, problem in enumerate(self.problems):
            rows = scored[problem.id]
            if number in self.structure and problem.id in whole:
                yield whole[problem.id]
            elif number in self.structure and rows and rows[0].kind == "prefix":
                found = pick(self.rule, rows, self.length, None, self.grader)
                assert found is not None
                yield replace(rows[found], kind="full")  # the picked one ended within the prefix
            else:
                yield from rows


def rated_by_confidence(row: Solution) -> Solution:
    """A prefix with its mean log-probability (nats per token, EOS included) as its score."""
    return replace(row, score=mean_logprob(row), logprob=None)
