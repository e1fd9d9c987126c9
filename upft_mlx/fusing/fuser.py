"""An adapter on its base model, and how much of its effect each format keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from upft_mlx.events import Note, Observer, Progress, ignore
from upft_mlx.fusing.fidelity import Comparison, greedy_probes, probes, retained
from upft_mlx.fusing.formats import Format, candidate_formats, fused_layer, input_size, size_of
from upft_mlx.fusing.moments import MAX_ROWS, second_moments
from upft_mlx.models.adapters import AdapterSwitch, load_adapter
from upft_mlx.models.chat import Renderer
from upft_mlx.models.cpu_layers import add_dense_copies
from upft_mlx.models.load import Loaded
from upft_mlx.planning.memory import PROBED_PROMPTS
from upft_mlx.quantities import many
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.fidelity import Divergence, Fidelity
from upft_mlx.rows import TrainingRow, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.training.batches import Example, to_examples


class Fuser:
    """One adapter on one base model, and the formats to fuse it in."""

    def __init__(
        self, recipe: Recipe, loaded: Loaded, run: RunDir, questions: Sequence[str] = (), notify: Observer = ignore
    ) -> None:
        """Load the adapter and record the model's outputs with and without it.

        Measured in float32 on every device: 16-bit activations round by more than a small update moves them.
        """
        self.recipe, self.loaded, self.run, self._notify = recipe, loaded, run, notify
        load_adapter(loaded, run.adapter)
        self._in_float32()
        self.layers = {name: module for name, module in loaded.model.named_modules() if hasattr(module, "fuse")}
        arrays = dict(tree_flatten(loaded.model.parameters()))
        inside = tuple(f"{name}." for name in self.layers)
        self._rest = [(name, array) for name, array in arrays.items() if not name.startswith(inside)]
        self.formats = candidate_formats(loaded, self.layers)
        self.measured: dict[str, Fidelity] = {}
        self._applied: Format | None = None
        notify(Progress("fuse", 0, len(self.formats) + 1, "steps"))
        rows, greedy = self._probes(questions)
        self.probed = {"rows": len(rows), "prompts": len(greedy)}
        self.longest_prompt = max((example.start for example in (*rows, *greedy)), default=0)
        self._comparison = Comparison(loaded.model, rows, greedy)
        switch = AdapterSwitch(loaded)
        switch("base")
        self.base: Divergence = self._comparison.of(loaded.model)
        switch("tuned")

    def _probes(self, questions: Sequence[str]) -> tuple[list[Example], list[Example]]:
        """Validation rows (the first training rows if none are held out), and greedy completions of prompts."""
        found = list(read_rows(self.run.valid, TrainingRow)) or list(read_rows(self.run.train, TrainingRow))
        prompts = [row.prompt_ids for row in found]
        if questions:
            renderer = Renderer(self.loaded.tokenizer, self.recipe.prompt)
            spread = questions[:: max(1, len(questions) // PROBED_PROMPTS)]  # over all benchmarks
            prompts = [renderer.asked(question) for question in spread[:PROBED_PROMPTS]]
        return probes(to_examples(found, self.recipe.train.max_length)), greedy_probes(self.loaded, prompts)

    # Measuring.

    def measure(self, form: Format) -> Fidelity | None:
        """How much a format keeps; None if the model overflows in it. Leaves the model fused, in float32."""
        self.apply(form)
        if form.whole:  # does the model work in a 16-bit type that is not its own? float16 ends at 65504
            self.loaded.cast(form.dtype)
            finite = self._comparison.is_finite(self.loaded.model)
            self.loaded.model.set_dtype(mx.float32)
            if not finite:
                self._notify(Note(f"{form.name}: this model's activations overflow in this format; not used"))
                return None
        return self.judge(form)

    def judge(self, form: Format) -> Fidelity:
        """How much the current model, fused as `form`, keeps; leaves it in float32."""
        self._in_float32()
        found, size = self._comparison.of(self.loaded.model), size_of(self.loaded, self.layers, form)
        kept = retained(found.kl, self.base.kl)
        fidelity = Fidelity(**asdict(found), fuse=form.name, retained=kept, kl_base=self.base.kl, bytes=size)
        self.measured[form.name] = fidelity
        self._notify(Progress("fuse", len(self.measured), len(self.formats) + 1, "steps"))
        return fidelity

    def apply(self, form: Format) -> None:
        """Put the fused layers into the model instead of the adapters; float32 holds every format's values exactly."""
        if self._applied == form:
            return
        model = self.loaded.model
        fused = (
            self._fitted(form) if form.fitted else [(n, fused_layer(layer, form)) for n, layer in self.layers.items()]
        )
        model.update_modules(tree_unflatten(fused))
        model.load_weights(self._rest, strict=False)
        if form.whole:
            self.loaded.cast(form.dtype)
        self._in_float32()
        mx.eval(model.parameters())
        self._applied = form

    def _in_float32(self) -> None:
        self.loaded.model.set_dtype(mx.float32)
        add_dense_copies(self.loaded.model)

    def _fitted(self, form: Format) -> list[tuple[str, nn.Module]]:
        """The layers, rounded to preserve their outputs on training rows with the adapter on."""
        model, total = self.loaded.model, len(self.layers)
        model.update_modules(tree_unflatten(list(self.layers.items())))
        model.load_weights(self._rest, strict=False)
        rows = to_examples(read_rows(self.run.train, TrainingRow), self.recipe.train.max_length)
        count = min(len(rows), MAX_ROWS)
        outputs = f"the outputs on {many(count, 'training row')}"
        self._notify(Note(f"fuse: trying {form.name}: rounding that preserves {outputs}", minor=True))

        def on_pass(done: int) -> None:
            self._notify(Progress("fuse", done, total, "layers"))

        moments = second_moments(model, self.layers, rows, input_size, on_pass)
        return [(name, fused_layer(self.layers[name], form, found)) for name, found in moments]

    def adapter(self) -> Fidelity:
        """The adapter itself, not fused: the reference for the others."""
        size = (self.run.adapter / "adapters.safetensors").stat().st_size
        return Fidelity(
            kl=0.0,
            top1_agreement=1.0,
            greedy_agreement=1.0,
            fuse="adapter",
            retained=1.0,
            kl_base=self.base.kl,
            bytes=size,
        )
