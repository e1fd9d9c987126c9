"""The `upft` group, and its commands in `upft --help`: in the order in which they are needed, each on one line."""

from __future__ import annotations

import click

from upft_mlx.cli.options import helped
from upft_mlx.stages import STAGES, in_run

SECTIONS: dict[str, dict[str, str]] = {
    "Getting started": {
        "demo": "Run the whole method on a tiny embedded model, offline.",
        "doctor": "Can your machine run it, and are its results correct?",
        "recipes": "List the shipped recipes, and for which Mac.",
        "new": "Write a recipe for your model and questions.",
        "completion": "Complete commands, recipes and fields in your shell.",
    },
    "Before a run": {
        "fetch": "Download the model and the datasets.",
        "plan": "Estimate tokens, memory, disk and time.",
        "preview": "Show exact prompts, and which tokens are trained on.",
    },
    "Run": {
        "run": "Run all stages; continues after an interruption.",
        **{name: f"Stage {number}: {STAGES[name].summary}" for number, name in enumerate(in_run(), 1)},
    },
    "Afterwards": {
        "show": "Show the report, the flips, or one problem.",
        "runs": "List your runs: verdicts, dates, what differs.",
        "ask": "Ask base and tuned a question, side by side.",
        "kept": "List, restore or remove earlier versions of a stage.",
        "adopt": "Accept files that you changed by hand.",
        "export": "Export for PEFT or llama.cpp, or without quantization.",
        "push": "Upload to the Hugging Face Hub with a model card.",
    },
    "Choose settings": {
        **{name: STAGES[name].summary for name in ("forecast", "answers", "choose")},
        "analyze": STAGES["analyze"].summary,
        "compare": "Compare methods over several seeds.",
        "sweep": "Try a grid of settings and choose the best.",
    },
}
"""What each command does, by section. A line fits beside its name on 80 columns."""


class Once(click.Command):
    """A command that refuses an option given twice where one would be ignored."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Parse, and count what was given."""
        if not context.resilient_parsing:
            _, _, given = self.make_parser(context).parse_args(args=list(args))
            for option in given:
                single = isinstance(option, click.Option) and not (option.multiple or option.is_flag or option.count)
                if single and given.count(option) > 1:
                    raise click.UsageError(f"{option.opts[-1]} was given {given.count(option)} times; give it once")
        return super().parse_args(context, args)


class Sections(click.Group):
    """A group whose help lists its commands by section instead of by name."""

    command_class = Once

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections; click would cut each command's own help to half a sentence."""
        width = max(map(len, self.commands), default=0)
        for title, lines in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), line) for name, line in lines.items()])


@click.group(
    cls=Sections,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=helped(
        "Unsupervised Prefix Fine-Tuning on a Mac: sample the first tokens of one solution per problem, "
        "fine-tune on them, measure base against tuned, and fuse. RECIPE is a YAML file, the name of a shipped "
        "recipe, or a run directory with its own settings. `upft COMMAND --help` shows the options of a command.",
        "upft demo",
        "upft run my-recipe.yaml --set prefix.length=8",
    ),
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, parameter, value: _print_versions(context) if value else None,
    help="Show the versions of upft, mlx, mlx-lm and Python and exit.",
)
def cli() -> None:
    """The group; its help is above."""


def _print_versions(context: click.Context) -> None:
    from upft_mlx.machine.requirements import versions_line

    click.echo(versions_line())
    context.exit()
