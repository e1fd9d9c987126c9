"""`upft ask`: a question to base and tuned."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from upft_mlx.cli.complete import complete_targets
from upft_mlx.cli.edge import folder_of, prepared
from upft_mlx.cli.group import cli
from upft_mlx.cli.options import Options, PathOption, common, helped
from upft_mlx.errors import UpftError
from upft_mlx.escape import one_line, to_json

if TYPE_CHECKING:
    from upft_mlx.inspection.ask import Asker
    from upft_mlx.recipe.schema import Recipe


@cli.command(
    help=helped(
        "Ask base and tuned the same question and see both answers side by side. TARGET is a recipe, a run directory "
        "or a run in runs/; leave it out with --model. Without QUESTION, a terminal asks for questions (press Enter "
        "on an empty line to quit); otherwise the question comes from stdin. Base answers first, then tuned, on one "
        "loaded model.",
        'upft ask quickstart "Sam has 6 bags of 5 cups and loses 7 of them. How many cups are left?"',
        "upft ask my-recipe.yaml --chat",
        'upft ask --model my-model --adapter my-adapter "What is 7 times 8?"',
    )
)
@click.argument("target", required=False, shell_complete=complete_targets)
@click.argument("question", required=False)
@click.option("--model", metavar="PATH_OR_ID", help="Ask this model instead of a recipe's.")
@click.option("--adapter", type=PathOption(), help="Use this adapter as tuned.  [default: the run's]")
@click.option("--chat", is_flag=True, help="Keep the conversation: each question follows the earlier ones.")
@click.option(
    "--temperature",
    type=click.FloatRange(0, 5),
    default=0.0,
    show_default=True,
    metavar="T",
    help="Sampling temperature; 0 is greedy.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Maximum tokens per answer.  [default: evaluate.max_tokens]",
)
@common
def ask(
    target: str | None,
    question: str | None,
    model: str | None,
    adapter: Path | None,
    chat: bool,
    temperature: float,
    max_tokens: int | None,
    options: Options,
) -> None:
    """See the help."""
    if model is not None:
        if question is not None:
            raise click.UsageError("give a TARGET, or a model with --model, not both")
        target, question = None, target
    elif target is None:
        raise click.UsageError("give a recipe or a run before the question, or a model with --model")
    if chat and (options.as_json or not sys.stdin.isatty()):
        raise click.UsageError("--chat needs a terminal and does not work with --json")
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    if question is None and options.as_json:
        raise click.UsageError("--json needs a QUESTION")
    question = question and question.strip()
    if question == "":
        first = f" after {target!r}, which is read as a recipe or run" if target else ""
        raise click.UsageError(f"the question is empty; give one as the last argument{first}, or on stdin")
    with prepared(target, options, model=model) as recipe:
        from upft_mlx.events import Event, Note
        from upft_mlx.inspection.ask import Conversation, open_asker
        from upft_mlx.rundir import RunDir
        from upft_mlx.ui.ask import open_answers, print_note

        def notify(event: Event) -> None:
            if isinstance(event, Note):
                print_note(event.text)

        run = None if target is None else RunDir(folder_of(target, recipe, options.run_dir))
        asker = open_asker(recipe, run, adapter, temperature, max_tokens, notify)
        adapter = asker.adapter
        if question is None or chat:  # a terminal asks for questions
            _talk(asker, recipe, adapter, question, keep=chat, plain=options.plain)
            return
        with nullcontext() if options.as_json else open_answers(asker.variants, plain=options.plain) as view:
            answers = Conversation(asker, keep=False).ask(question, view or (lambda answer: None))
        if options.as_json:
            about: dict[str, Any] = {
                "model": recipe.model,
                "adapter": None if adapter is None else str(adapter),
                "question": question,
            }
            about |= {"temperature": asker.temperature, "max_tokens": asker.max_tokens}
            shown = {variant: answers[variant].dump() if variant in answers else None for variant in ("base", "tuned")}
            click.echo(to_json({**about, "answers": shown}))
    if any(answer.finish_reason == "interrupted" for answer in answers.values()):
        sys.exit(130)


def _talk(asker: Asker, recipe: Recipe, adapter: Path | None, question: str | None, *, keep: bool, plain: bool) -> None:
    """Ask question after question until an empty line or /exit, beginning with `question` if it is given."""
    from upft_mlx.inspection.ask import Conversation
    from upft_mlx.ui.ask import open_answers, print_note, read_question
    from upft_mlx.ui.views import print_error

    tuned = "" if adapter is None else f", tuned with {adapter}"
    each = "the conversation is kept" if keep else "each question is separate; --chat keeps the conversation"
    print_note(f"{recipe.model}{tuned}\n{each}; /help lists what else you can type, /exit or an empty line quits")
    conversation = Conversation(asker, keep=keep)
    question = question or read_question()
    while question is not None and question.strip() not in ("/exit", "/quit"):
        if question.strip() == "/help":
            samples = DEMO_QUESTIONS if recipe.model.startswith("builtin:") else ()
            print_note("\n".join([f"a question; /exit or an empty line quits; {each}", *samples]))
        elif question.startswith("/"):
            print_note(f"{one_line(question)}: unknown; /help lists what you can type")
        else:
            try:
                with open_answers(asker.variants, plain=plain) as view:
                    conversation.ask(question, view)
            except UpftError as error:  # the conversation goes on
                print_error(str(error))
        question = read_question()


DEMO_QUESTIONS = (
    "Sam has 6 bags of 5 cups and loses 7 of them. How many cups are left?",
    "There are 9 bags with 3 pens each. Leo loses 9 pens. How many are left?",
)
"""What the demo's model answers right, for example."""
