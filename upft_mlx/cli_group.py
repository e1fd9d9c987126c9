"""The list of commands in `upft --help`: in the order in which they are needed, each told in one whole line."""

from __future__ import annotations

import click

SECTIONS: dict[str, dict[str, str]] = {
    "Begin": {
        "demo": "The whole method on an embedded tiny model, offline.",
        "doctor": "Is this machine fit, and does it compute right?",
        "recipes": "The recipes that ship, and for which Mac.",
        "new": "Write a recipe for your model and questions.",
        "completion": "Let the shell complete commands, recipes and fields.",
    },
    "Before a run": {
        "fetch": "Download the model and the datasets.",
        "plan": "Tokens, memory, disk and time that it will take.",
        "preview": "The exact prompts, and which tokens train.",
    },
    "Run": {
        "run": "All stages; continues what was interrupted.",
        "generate": "Stage 1: sample the solutions.",
        "build": "Stage 2: turn them into training rows.",
        "train": "Stage 3: train the adapter.",
        "evaluate": "Stage 4: measure base against tuned, or any model.",
        "fuse": "Stage 5: write the adapter into the weights.",
    },
    "Afterwards": {
        "show": "The report, the flips, one problem.",
        "ask": "Your question to base and tuned, side by side.",
        "kept": "Earlier versions of a stage: list, restore, remove.",
        "adopt": "Take files that you changed by hand as they are.",
        "export": "For PEFT, or without quantization.",
        "push": "Upload to the Hugging Face Hub, with a model card.",
    },
    "Choose settings": {
        "analyze": "How long may a prefix be on this model?",
        "compare": "Methods side by side, over several seeds.",
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
                    raise click.UsageError(f"{option.opts[-1]} is given {given.count(option)} times; give it once")
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
