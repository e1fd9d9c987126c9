"""The adapter's update written into the weights: a folder that stock mlx-lm loads.

Re-quantising to the base's few bits rounds small updates away (mlx-lm #654), so what each form of fusing keeps is
measured: `auto` takes the smallest that keeps the effect, and what keeps too little is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from upft_mlx.errors import FuseError, ModelError
from upft_mlx.events import Observer, Progress, ignore
from upft_mlx.fusing.formats import Format, config_of, write_model
from upft_mlx.fusing.fuser import Fuser
from upft_mlx.models.architecture import read_architecture
from upft_mlx.models.load import Loaded
from upft_mlx.planning.budget import this_machine
from upft_mlx.planning.memory import fusing_peak
from upft_mlx.quantities import disk, percent
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.fidelity import Fidelity, Fused
from upft_mlx.rows import write_json
from upft_mlx.rundir import RunDir, remove

KEPT = 0.95
"""Minimum retained effect of the format that `auto` chooses, unless none keeps this much."""


def fuse(
    recipe: Recipe,
    loaded: Loaded,
    run: RunDir,
    notify: Observer = ignore,
    *,
    questions: Sequence[str] = (),
    force: bool = False,
) -> Fidelity:
    """Write fused/ (unless `publish.fuse` is `adapter`) and fidelity.json.

    Args:
        recipe: its `publish` says how.
        loaded: the base model.
        run: has the adapter and the rows.
        notify: receives progress events.
        questions: the evaluation's, measured on together with the validation rows.
        force: fuse even if less than `publish.min_retained` is kept.

    Raises:
        FuseError: too little is kept (names the formats that pass), or the format asked for does not exist.
    """
    fuser = Fuser(recipe, loaded, run, questions, notify)
    chosen = _choose(fuser)
    if chosen.retained < recipe.publish.min_retained > 0 and not force:
        _refuse(fuser, chosen)
    if chosen.fuse == "adapter":
        remove(run.fused)
    else:  # its weights in the types in which they were measured
        form = next(form for form in fuser.formats if form.name == chosen.fuse)
        fuser.apply(form)
        loaded.cast(form.dtype if form.whole else loaded.dtype)
        modules = dict(loaded.model.named_modules())
        for name in fuser.layers:
            modules[name].set_dtype(form.dtype)
        write_model(loaded, config_of(loaded.config, fuser.layers, form), run.fused)
    notify(Progress("fuse", len(fuser.formats) + 1, len(fuser.formats) + 1, "steps"))
    found = Fused(
        **vars(chosen),
        rows=fuser.probed["rows"],
        prompts=fuser.probed["prompts"],
        base=fuser.base,
        candidates=[*fuser.measured.values()],
    )
    write_json(run.fidelity, found.dump())
    return chosen


def _choose(fuser: Fuser) -> Fidelity:
    """The smallest format that `publish.fuse` allows and that keeps the effect, or the one that keeps most."""
    asked = fuser.recipe.publish.fuse
    if asked == "adapter":
        return fuser.adapter()
    allowed = [form for form in fuser.formats if asked in ("auto", form.family, form.second_name)]  # smallest first
    if not allowed:
        families = ", ".join(dict.fromkeys(form.family for form in fuser.formats))
        bits = next(form.width for form in fuser.formats if form.name == "base")
        raise FuseError(
            f"{asked}: has no effect when the base has {bits} bits",
            f"set it to auto, {families} or adapter",
            field="publish.fuse",
        )
    for form in allowed:
        if _needs_no_try(fuser, form):
            continue
        found = fuser.measure(form)
        if found is not None and found.retained >= max(KEPT, fuser.recipe.publish.min_retained):
            return found
    if not fuser.measured:
        raise FuseError(f"{allowed[0].name}: this model overflows in it", "set it to auto", field="publish.fuse")
    return max(fuser.measured.values(), key=lambda found: found.retained)


def _needs_no_try(fuser: Fuser, form: Format) -> bool:
    """Whether to skip fitting, which takes minutes for a large model: nearest rounding keeps enough, or nothing.

    Where nearest rounding ended below 0, fitted rounding ended below 0.9 in all that was measured (docs/use/fusing.md).
    The base's own bits are another matter: there fitting keeps the codes, which nearest rounding does not.
    """
    if not form.fitted:
        return False
    nearest = fuser.measured.get(form.name.removesuffix("-fitted"))
    if nearest is None or nearest.retained >= max(KEPT, fuser.recipe.publish.min_retained):
        return True
    return form.family != "base" and nearest.retained < 0


def _refuse(fuser: Fuser, chosen: Fidelity) -> NoReturn:
    """Name the formats that pass."""
    least, budget = fuser.recipe.publish.min_retained, this_machine()
    try:  # whether measuring 16 bits fits in memory: a refusal must not run out of it. If unknown, it is tried
        shape = read_architecture(fuser.loaded.path, fuser.recipe.quantize)
        needed = fusing_peak(shape, fuser.recipe.lora, budget, fuser.longest_prompt, all_float32=True)
        room = needed <= budget.bytes
    except ModelError:
        room = True
    for form in fuser.formats:
        if form.name not in fuser.measured and (room or form.bits) and not _needs_no_try(fuser, form):
            fuser.measure(form)
    passing = []
    for found in (*fuser.measured.values(), fuser.adapter()):
        if found.retained >= least:
            family, *rest = found.fuse.split("-")
            detail = [f"{part} bits" if part.isdigit() else part for part in rest]
            detail += [disk(found.bytes), f"keeps {percent(found.retained)}"]
            passing.append(f"{family} ({', '.join(detail)})")
    raise FuseError(
        f"fusing as {chosen.fuse} keeps {chosen.kept} (publish.min_retained: {percent(least, 0)})",
        f"these values of publish.fuse pass: {'; '.join(passing)}"
        f"{'' if room else '; 16 bits were not tried because measuring them does not fit in memory'}. To fuse anyway: "
        "`upft fuse --force`, or publish.min_retained: 0",
    )
