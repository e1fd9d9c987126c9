"""A recipe: YAML turned into a typed, frozen, closed configuration.

    name: my-run                       # a recipe states only what differs from the defaults
    model: mlx-community/Qwen2.5-0.5B-Instruct-4bit
    problems: {path: questions.jsonl}
    prefix: {length: 16}

Unknown keys are errors that suggest the nearest field; everything that is wrong is reported at once. The sections of
the evaluation, of publishing and of the studies, which are used on their own, too, are in modules beside this one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WrapSerializer, model_validator

from upft_mlx.recipe.evaluate import Evaluate
from upft_mlx.recipe.fields import BadRows, Count, Day, FieldError, Section, Sequences, Share, Strings, Turn, as_tuple
from upft_mlx.recipe.publish import Publish
from upft_mlx.recipe.start import without_open
from upft_mlx.recipe.studies import SCORED, Analyze, Compare, Forecast, Method, Selection

PAPER_TEMPLATE = (
    " Please provide the initial step towards resolving the question. "
    "This step may serve as a foundation but might not encompass the entire solution."
)
"""The task template of the paper (arXiv 2503.02875), appended to the question on prefix rows only."""


class Quantize(Section):
    """Local quantization of an unquantized model (affine, mlx-lm's format)."""

    bits: Literal[2, 3, 4, 5, 6, 8] = 4
    """Bits per weight."""
    group_size: Literal[32, 64, 128] = 64
    """Weights that share a scale and a bias."""


class Problems(Section):
    """Where the problems come from: exactly one of `path`, `dataset` and `builtin`."""

    path: str | None = None
    """A local .jsonl, .json, .csv, .tsv or .parquet file, relative to the recipe's folder; may end in .gz, except
    .parquet."""
    dataset: str | None = None
    """A dataset id on the Hugging Face Hub."""
    builtin: Literal["arithmetic"] | None = None
    """Problems that ship with upft_mlx."""
    config: str | None = None
    """The Hub dataset's configuration."""
    split: str = "train"
    """The Hub dataset's split."""
    revision: str | None = None
    """The Hub dataset's branch, tag or commit."""
    question: str | None = None
    """The question's column, with dots for a nested field (`input.question`); unset: question, problem, query, prompt,
    instruction, messages or conversations."""
    answer: str | None = None
    """The answer's column; unset: the first of answer, final_answer, expected_answer, solution and others that is
    filled."""
    id: str | None = None
    """The id's column, or `none` to number the rows; unset: id, unique_id, problem_id or Record ID, if there is one."""
    bad_rows: BadRows = "stop"
    """What to do at a row that cannot be used (no question, an answer that is a list, broken JSON): `stop` and name its
    line, or `skip` it and say how many."""
    limit: Count | None = None
    """Maximum number of problems, taken after the shuffle."""
    shuffle: bool = False
    """Shuffle with the recipe's seed before applying the limit."""

    @model_validator(mode="after")
    def _one_source(self) -> Problems:
        given = [name for name in ("path", "dataset", "builtin") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise FieldError(f"needs exactly one of path, dataset and builtin, found {found}")
        return self


class Prompt(Section):
    """The text around a question; the same in sampling, training and evaluation."""

    system: str | None = None
    """The system turn; unset: the default of the model's chat template."""
    instruction: Turn | None = None
    """The user turn, with `{question}` in it; unset: the question and a request for the answer in `\\boxed{}` (for the
    letter if all answers are letters), or the question alone if the chat template or system turn asks for it."""
    chat_template_args: dict[str, bool | int | str] = Field(default_factory=dict)
    """Extra arguments for the chat template, for example `enable_thinking: false`; unset: the template's defaults."""
    chat_template: str | None = None
    """A file with a chat template of your own (Jinja), used wherever the model is asked and saved with the fused model;
    unset: the model's."""
    date: Day | None = None
    """The date that some chat templates print; unset: the day on which the run began."""


class Generate(Section):
    """How solutions are sampled."""

    temperature: Annotated[float, Field(ge=0.0, le=5.0)] = 0.6
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Nucleus share of solutions; unset: the model's generation_config, or 1. Evaluation always takes the model's."""
    top_k: Annotated[int, Field(ge=0)] | None = None
    """Number of most likely tokens kept, 0 for all; unset: the model's generation_config, or 0. Evaluation always
    takes the model's."""
    samples: Count = 1
    """Solutions per problem; more than one only for method rft, or for a `prefix.selection` that chooses among them."""
    keep: Count = 4
    """Maximum number of correct solutions kept per problem (method rft)."""
    max_tokens: Count = 1024
    """Maximum length of a full solution (tokens)."""
    stop: Strings = ()
    """Texts that end a solution; the text itself is not included."""
    batch_size: Sequences = 32
    """Sequences decoded together; `auto`: as many as fit in memory, at most 64."""

    @model_validator(mode="after")
    def _stop_says_something(self) -> Generate:
        if "" in self.stop:
            raise FieldError('"" is everywhere', "remove it", field="stop")
        return self


class Prefix(Section):
    """How solutions become training rows."""

    length: Count = 16
    """Prefix length t (tokens); 8 to 32 are within noise in the paper."""
    structure_ratio: Share = 0.1
    """Share p of the problems for which the model is trained on one full, unchecked solution instead of a prefix."""
    template: str = "none"
    """The text appended to the question on prefix rows: `paper`, `none`, or a text of your own. It makes training ask
    otherwise than sampling and evaluation do; on a real model rows without it gained more."""
    eos: bool = False
    """Train an EOS after the prefix, as the paper's reference code does; needs a template, which makes stopping there a
    fair answer. The model sampled none there, so it may take most of the loss: the report says how much."""
    eos_weight: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Weight of that EOS beside the sampled tokens of its row, which have 1 each."""
    selection: Selection = "first"
    """Which sample to train on. `first`: the only one (the paper). `consensus`: one with the most frequent prefix.
    `majority_answer`: one whose full solution has the majority's answer. `confidence`: the full solution with the
    highest mean log-probability. `longest`: the longest full solution, as the control for `confidence`. `label`: one
    with the right answer. `prefix_confidence`: the prefix with the highest mean log-probability. `rollouts`: the prefix
    from which most continuations are right, or agree with the majority where a problem has no answer. `probe`: the
    prefix that a classifier rates highest, which is fitted on the hidden states of a few problems with answers
    (`forecast.problems`). `auto`: of consensus, prefix_confidence and probe the one with the best forecast
    (`upft forecast`); refuses to train if none is above zero."""
    rollouts: Count = 4
    """Continuations of each prefix (selection `rollouts`)."""
    structure: Literal["unchecked", "checked"] = "unchecked"
    """Where structure rows come from. `unchecked`: one solution of each problem of a random share (the paper).
    `checked`: right solutions, of the problems whose answers are used (`forecast.problems`); `probe` and `auto` always
    take these."""
    drop_cjk: bool = False
    """Drop solutions with Chinese, Japanese or Korean characters (the reference code's filter)."""
    require_boxed: bool = False
    """Drop full solutions without `\\boxed` (the reference code's filter)."""

    @model_validator(mode="after")
    def _eos_needs_template(self) -> Prefix:
        if self.eos and not self.template_text:
            raise FieldError(
                "true with template: none would teach the model to stop after `length` tokens",
                "set eos: false, or a template",
                field="eos",
            )
        return self

    @property
    def template_text(self) -> str:
        """The text that is appended to the question on prefix rows, empty for `none`."""
        return {"paper": PAPER_TEMPLATE, "none": ""}.get(self.template, self.template)


class Lora(Section):
    """The adapter, in mlx-lm's terms."""

    rank: Count = 16
    """Rank of the update."""
    scale: Annotated[float, Field(gt=0.0)] = 2.0
    """Multiplier of the update (elsewhere alpha / rank)."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the adapter's input."""
    num_layers: Annotated[int, Field(ge=-1)] = -1
    """Layers with an adapter, counted from the last; -1: all."""
    keys: Strings | None = None
    """Modules inside a layer, for example `self_attn.q_proj`; unset: all linear modules."""
    start_from: str | None = None
    """Folder of a trained adapter (mlx-lm, PEFT) to train further; rank, scale, layers and keys come from it."""
    grid: Literal["base"] | None = None
    """`base`: an update of one number per quantization group, which `publish.fuse: base` keeps. Unset: any update."""

    @model_validator(mode="after")
    def _something_to_train(self) -> Lora:
        if self.num_layers == 0:
            raise FieldError("0 would train nothing", "use -1 for all layers", field="num_layers")
        if self.keys == ():
            raise FieldError("[] would train nothing", "leave keys out for all linear modules", field="keys")
        return self


class Train(Section):
    """The optimizer and its schedule (AdamW)."""

    epochs: Count | None = None
    """Passes over all rows; 1 if neither `epochs` nor `steps` is given."""
    steps: Count | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: Sequences = 16
    """Maximum number of sequences per optimizer step; an epoch's rows are spread evenly over its steps. `auto`: the
    paper's 64, or less if an epoch would have fewer than 20 steps."""
    micro_batch_size: Sequences | None = None
    """Sequences run through the model at a time, to save memory; the step is the same. Unset: micro-batches of up to
    512 tokens; `auto`: as many sequences as fit in memory."""
    grad_checkpoint: bool = False
    """Compute the layers again in the backward pass instead of storing activations: less memory, more time."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 3e-5
    """Peak learning rate; the paper's 1e-6 is for full fine-tuning, LoRA needs more. 3e-5 is the largest that left a
    real model's answers as long as they were."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate schedule after the warm-up."""
    warmup_ratio: Share = 0.03
    """Share of the steps with a linearly rising learning rate."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """AdamW's decoupled weight decay."""
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]],
        BeforeValidator(as_tuple),
    ] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    """Maximum global norm of the gradient; null: no limit."""
    max_length: Annotated[int, Field(ge=2)] = 2048
    """Maximum length of a row (tokens); longer completions are cut."""
    valid_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the problems held out for the validation loss (measured on up to 128 of their rows); 0: none."""
    report_every: Count = 10
    """Steps between two lines of metrics; each of the first ten steps has one."""
    validate_every: Count = 50
    """Steps between two validation losses; the last step always has one."""
    patience: Count | None = None
    """Stop training when this many validation losses in a row are no better than the best one, or with `save: accuracy`
    this many accuracies; unset: train all steps."""
    evaluate_every: Count | None = None
    """Steps between two accuracies on validation problems that have answers, sampled greedily; before the first and
    after the last step there is one, too. Unset: none. Benchmarks must not have these problems."""
    evaluate_limit: Count | None = None
    """Maximum number of validation problems for these accuracies; unset: 64."""
    checkpoint_every: Count = 50
    """Steps between two checkpoints."""
    keep: Count = 2
    """Number of checkpoints kept."""
    save: Literal["best", "accuracy", "last"] = "best"
    """Which weights go to `adapter/`: those with the `best` validation loss, those with the best `accuracy` on
    validation problems (`evaluate_every`), or those of the `last` step."""
    report_to: Literal["tensorboard", "wandb", "swanlab"] | None = None
    """Also send the metrics to TensorBoard (`tensorboard/` in the run directory), Weights & Biases or SwanLab, which
    must be installed; unset: `metrics.jsonl` alone."""

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> Train:
        if self.epochs is not None and self.steps is not None:
            raise FieldError(
                f"epochs: {self.epochs} and steps: {self.steps}", "give one of them, and set the other to null"
            )
        if self.patience is not None and self.valid_ratio == 0:
            raise FieldError(
                f"{self.patience} without a validation loss to wait for", "set valid_ratio above 0", field="patience"
            )
        if self.evaluate_every is not None and self.valid_ratio == 0:
            raise FieldError(
                f"{self.evaluate_every} without validation problems to ask",
                "set valid_ratio above 0",
                field="evaluate_every",
            )
        if self.save == "accuracy" and self.evaluate_every is None:
            raise FieldError("accuracy, but none is measured", "set train.evaluate_every", field="save")
        return self


class Recipe(Section):
    """One run, from problems to a fused model."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's name: letters, digits, `.`, `_`, `-`; unset: the recipe file's name."""
    model: str = Field(min_length=1)
    """A local folder, a GGUF file, a Hub id, or `builtin:arithmetic`."""
    revision: str | None = None
    """The Hub model's branch, tag or commit."""
    quantize: Quantize | None = None
    """Quantize an unquantized model after loading."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """All randomness derives from this seed."""
    method: Method = "upft"
    """`upft` (the paper), or a method to compare with; `annotated` trains on the dataset's own worked solutions."""
    trust_remote_code: bool = False
    """Run Python code from the model folder."""
    problems: Problems
    """The problems to sample solutions for."""
    prompt: Prompt = Prompt()
    """System turn and chat template."""
    generate: Generate = Generate()
    """Sampling."""
    prefix: Prefix = Prefix()
    """Training rows."""
    lora: Annotated[Lora, WrapSerializer(without_open)] = Lora()
    """Adapter."""
    train: Train = Train()
    """Optimizer."""
    evaluate: Evaluate = Evaluate()
    """Benchmarks."""
    analyze: Analyze = Analyze()
    """Prefix statistics."""
    forecast: Forecast = Forecast()
    """What a rule would change, before training."""
    compare: Compare = Compare()
    """Methods side by side."""
    publish: Publish = Publish()
    """Fused model."""

    @model_validator(mode="after")
    def _samples_fit_method(self) -> Recipe:
        samples, selection = self.generate.samples, self.prefix.selection
        chooses = self.method == "rft" or selection != "first"
        if samples > 1 and not chooses:
            raise FieldError(
                f"{samples} with method {self.method}, which trains on one sample per problem",
                "set generate.samples: 1, a prefix.selection that chooses among them, or method: rft",
                field="generate.samples",
            )
        if samples == 1 and selection not in ("first", "label"):
            raise FieldError(
                f"{selection} chooses among samples", "set generate.samples above 1", field="prefix.selection"
            )
        if self.generate.temperature == 0 and samples > 1:
            raise FieldError("0 makes all samples equal", "set it above 0", field="generate.temperature")
        return self

    @model_validator(mode="after")
    def _selection_fits_method(self) -> Recipe:
        selection = self.prefix.selection
        if self.method in ("rft", "structure_only", "annotated") and selection != "first":
            raise FieldError(
                f"{selection} with method {self.method}, which has its own rule",
                "remove it, or set method: upft or sft",
                field="prefix.selection",
            )
        if self.prefix.structure == "checked" and (self.method != "upft" or self.samples_full):
            raise FieldError(
                f"checked with method {self.method} and prefix.selection {selection}: all problems are sampled whole",
                "use method: upft and a rule that samples prefixes, or unchecked",
                field="prefix.structure",
            )
        if self.method == "sft" and selection in ("consensus", "auto", *SCORED):
            raise FieldError(
                f"{selection} compares prefixes, and method sft trains on full solutions",
                "use majority_answer, or method: upft",
                field="prefix.selection",
            )
        return self

    @property
    def samples_full(self) -> bool:
        """Whether every sample is a full solution: methods that train on them, and selections that look at them."""
        whole = ("majority_answer", "confidence", "longest", "label")
        return self.method in ("sft", "rft", "annotated") or self.prefix.selection in whole

    @property
    def uses_answers(self) -> bool:
        """Whether a few problems with answers are sampled first, and their right solutions train."""
        return self.prefix.selection in ("probe", "auto") or self.prefix.structure == "checked"

    @property
    def needs_labels(self) -> bool:
        """Whether the problems must have answers."""
        return self.method in ("rft", "annotated") or self.prefix.selection == "label"

    @property
    def checks(self) -> Literal["none", "some", "all"]:
        """Which of the sampled solutions that train have a right answer for sure; `some`: where answers are used."""
        if self.method == "rft" or self.prefix.selection == "label":
            return "all"
        return "some" if self.uses_answers else "none"

    def dump(self) -> dict[str, Any]:
        """All fields with their resolved values, ready for JSON."""
        return self.model_dump(mode="json")

    def having(self, section: str, **fields: Any) -> Recipe:
        """The recipe with these fields of a section changed, validated."""
        data = self.model_dump()
        data[section] |= fields
        return Recipe.model_validate(data)
