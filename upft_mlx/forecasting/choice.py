"""Which rule `prefix.selection: auto` takes, and the probe of `probe`: choice/choice.json and choice/probe.json."""

from __future__ import annotations

from typing import Any

from upft_mlx.dataset.prefix import most_sampled
from upft_mlx.errors import TrainingError
from upft_mlx.events import StageStarted
from upft_mlx.forecasting.estimate import AUTO, Forecast, chosen_by_auto, points
from upft_mlx.forecasting.forecast import dump_probes, forecaster_of, prefix_inputs
from upft_mlx.forecasting.probe import Probe
from upft_mlx.job import Job, Outcome
from upft_mlx.quantities import accuracy, many
from upft_mlx.recipe.override import with_rule
from upft_mlx.rows import from_plain, read_json, write_json
from upft_mlx.rundir import RunDir

CHANCE = 0.5
"""The AUC of a coin; the interval of a probe that is used lies above it."""


def inputs(job: Job) -> dict[str, Any]:
    """What the stage `choose` depends on, besides the answers."""
    return {**prefix_inputs(job), **job.inputs.section("forecast", "continuations")}


def announce(job: Job) -> StageStarted:
    """At which length."""
    length = many(most_sampled(job.recipe, "prefix"), "token")
    return StageStarted("choose", f"the rule that picks prefixes of {length}")


def work(job: Job, run: RunDir) -> Outcome:
    """Forecast the rules of `auto` at `prefix.length`; write down the best one, and the probe."""
    length = most_sampled(job.recipe, "prefix")
    made = forecaster_of(job, run, run.choice, "choose").make(("first", *AUTO), [length])
    trusts, advice = tells_apart(made.forecast.probe.get(length)), made.forecast.advice
    chosen = chosen_by_auto([r for r in made.forecast.rules if trusts or r.selection != "probe"], length)
    text = advice.text
    if chosen is not None and chosen.forecast is not None:
        text = f"{chosen.selection}: {points(chosen.forecast)} points at t = {length}"
        text += f", from {many(made.forecast.problems, 'problem')} with answers"
    elif advice.selection is not None:  # its forecast is above zero all the same
        text = f"what greedy decoding takes is better than what {advice.selection} picks"
        if advice.selection == "probe" and not trusts:
            text = "the probe is not measurably better than chance, and no other forecast is above zero"
    write_json(run.choice / "probe.json", dump_probes(made.probes))
    selection = None if chosen is None else chosen.selection
    write_json(run.choice / "choice.json", {"selection": selection, "text": text, "forecast": made.forecast.dump()})
    return Outcome(text, tokens_sampled=made.forecast.tokens_sampled, tokens_processed=made.tokens_processed)


def tells_apart(area: dict[str, Any] | None) -> bool:
    """Whether a probe with this AUC tells right from wrong prefixes."""
    return area is not None and area["ci95"][0] > CHANCE


def take_choice(job: Job) -> None:
    """Put the rule that was chosen in the place of `prefix.selection: auto`, where one was."""
    if job.recipe.prefix.selection == "auto" and job.is_current("choose"):
        selection = read_json(job.run.choice / "choice.json")["selection"]
        if selection is not None:
            job.use(with_rule(job.recipe, selection))


def no_choice(run: RunDir) -> TrainingError:
    """Why nothing is trained where the stage choose found no rule for `auto`."""
    return TrainingError(
        f"no rule is worth training with: {read_json(run.choice / 'choice.json')['text']}",
        "`upft forecast` shows all rules and lengths; to train in spite of it, name a prefix.selection",
        field="prefix.selection: auto",
    )


def read_probe(run: RunDir, length: int) -> Probe:
    """The probe that the stage choose fitted.

    Raises:
        TrainingError: it cannot tell right from wrong prefixes.
    """
    choice, probes = read_json(run.choice / "choice.json"), read_json(run.choice / "probe.json")
    area: dict[str, Any] | None = Forecast.load(choice["forecast"]).probe.get(length)
    if str(length) not in probes or not tells_apart(area):
        found = "could not be fitted"
        if area is not None:
            share = accuracy(area["mean"], area["ci95"])
            found = f"rates a right sample above a wrong one of the same problem in {share} of "
            found += "the pairs, which is not measurably better than chance"
        raise TrainingError(
            f"at t = {length} it {found}",
            "give it more answers with forecast.problems, try another prefix.length, or take another rule (`upft "
            "forecast` shows all)",
            field="prefix.selection: probe",
        )
    return from_plain(Probe, probes[str(length)], "probe.json")
