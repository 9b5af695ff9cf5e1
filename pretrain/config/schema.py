"""The typed schema of an experiment. Every key a recipe may state stands here or in a registered kind's config.

Keys are documented by the text below them; `docs/configuration.md` is generated from these texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

import pretrain.blocks  # registers the block kinds
import pretrain.objectives  # registers the objective kinds
import pretrain.schedules  # noqa: F401  (registers the schedule kinds; F401 marks the last such import only)
from pretrain.blocks.norms import BASE_EPS
from pretrain.blocks.registry import BLOCKS
from pretrain.config.paths import NAME, NAME_LENGTH
from pretrain.objectives.registry import OBJECTIVES
from pretrain.registry import Section
from pretrain.schedules.registry import SCHEDULES

NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]

Bounds = tuple[float | None, float | None]
"""[watch, alarm] of a figure that gets worse as it grows; null: never."""
LOW = "low"
LowBounds = Annotated[Bounds, LOW]
"""The same of a figure that gets worse as it falls."""
Actions = tuple[Literal["scale_rate", "rollback", "stop"], ...]

BlockChoice = BLOCKS.config_union()
ObjectiveChoice = OBJECTIVES.config_union()
ScheduleChoice = SCHEDULES.config_union()


class RunSection(Section):
    """Where a run lives and what it is called."""

    dir: str = ""
    """Folder of the run; default runs/NAME, with --tiny runs/NAME-tiny."""
    cache: str = "~/.cache/kilolayer"
    """Folder for corpora, tokenizers and token files that can be built again."""


class ModelSection(Section):
    """The network."""

    family: Literal["encoder_decoder", "decoder", "encoder"] = "encoder_decoder"
    """Which stacks the model has: an encoder and a decoder, a decoder alone (GPT), an encoder alone (BERT)."""
    encoder_layers: NonNegativeInt = 6
    """Layers of the encoder (N in DeepNet); the default is 0 where the family has none."""
    decoder_layers: NonNegativeInt = 6
    """Layers of the decoder (M in DeepNet); the default is 0 where the family has none."""
    hidden_size: PositiveInt = 512
    """Width d of the residual stream."""
    num_heads: PositiveInt = 8
    """Attention heads; must divide hidden_size."""
    ffn_size: PositiveInt = 2048
    """Inner width of the feed-forward network."""
    activation: Literal["relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu"] = "relu"
    """Activation of the feed-forward network; swiglu and geglu are gated, with a third matrix of ffn_size."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """Every norm of the model; rms_norm has no bias."""
    norm_eps: PositiveFloat = BASE_EPS
    """Epsilon of the norms; those of DeepNorm's blocks have alpha^2 times it. Native Bart and OPT have 1e-5 alone."""
    bias: bool = True
    """Biases on the blocks' projections."""
    qk_norm: bool = False
    """A norm over each head's q and k before their product (ViT-22B), without bias, against logits that grow."""
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"
    """Learned or sinusoidal positions are added to the embedding, to sinusoidal ones the tokens times
    sqrt(hidden_size) (as Vaswani et al. 2017); rotary ones turn q and k of self-attention."""
    init_std: PositiveFloat | None = None
    """Standard deviation of all weights and embeddings at the start (GPT, BERT: 0.02); null: Xavier, as the block says,
    and 1/sqrt(hidden_size) for embeddings."""
    embedding_gradient_shrink: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the gradient that reaches the token embedding through the input (GLM-130B: 0.1); 1 leaves it."""
    dropout: Probability = 0.0
    """Dropout on every branch's output before the residual sum; keyed by (seed, step, sample, layer)."""
    embedding_norm: bool = True
    """LayerNorm on the summed embeddings. Native Bart export needs it."""
    tie_embeddings: bool = True
    """The output projection is the token embedding."""
    block: BlockChoice = Field(default_factory=BLOCKS.config("deepnorm"))  # type: ignore[valid-type]
    """The block design and its own keys; chosen by `kind`."""

    @model_validator(mode="before")
    @classmethod
    def _depths(cls, values: Any) -> Any:
        """A stack that the family does not have has no layers, unless somebody says so (and is refused)."""
        if not isinstance(values, Mapping):
            return values
        family = str(values.get("family", "encoder_decoder"))
        return {f"{stack}_layers": 0 for stack in ("encoder", "decoder") if stack not in family} | dict(values)


class LossSection(Section):
    """What is added to plain cross-entropy in training; validation_loss is always plain."""

    label_smoothing: Probability = 0.0
    """Share of a label's weight that is spread evenly over the vocabulary (Szegedy et al. 2016)."""
    z_loss: NonNegativeFloat = 0.0
    """Factor of log(sum exp(logits))^2 a token (PaLM: 1e-4); keeps the logits from drifting."""


class DataSection(Section):
    """Text, tokens and samples."""

    train: str = "embedded"
    """`embedded` (the Python standard library's source), a folder of text files, a .jsonl file of `text` fields, or
    `hf:PATH` (a saved dataset of the datasets library, .parquet or .arrow files; field `text`); for translation
    `gettext` or `gettext:FOLDER` (message catalogues), a .tsv file, or a .jsonl file of pairs."""
    validation: str | None = None
    """Corpus for validation in the same forms; default: held-out files (or lines) of data.train."""
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    """Share of the files that is held out when data.validation is not stated."""
    tokenizer: str = "auto"
    """`auto` (train a SentencePiece model on data.train, cached) or the path of a .model file."""
    vocab_size: PositiveInt = 4096
    """Pieces of a tokenizer trained by `auto`, sentinels and byte pieces included."""
    pad_vocab_to: PositiveInt = 1
    """The embedding's rows are the tokenizer's pieces rounded up to a multiple of this."""
    sequence_length: PositiveInt = 128
    """Tokens of a sample's input: the encoder's where there is one, else the decoder's; marks included."""
    document_mask: bool = False
    """Documents packed into one sample see only themselves, and positions count anew in each."""
    skip_ranges: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = ()
    """Half-open ranges [first, end) of global sample indices that are never used."""
    glob: str = "**/*"
    """Which files of a folder belong to the corpus."""


class BatchSection(Section):
    """The batch equation: global_batch_size = micro_batch_size x micro-batches x data-parallel processes."""

    global_batch_size: PositiveInt = 16
    """Samples per optimizer step over all processes."""
    micro_batch_size: PositiveInt = 16
    """Samples per forward pass of one process."""


class ParallelSection(Section):
    """How the model and its state are laid out over processes."""

    pipeline_stages: PositiveInt = 1
    """Pipeline stages; must divide the number of processes."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """ZeRO stage: 0 shards nothing (fp32 only), 1 the optimizer's state, 2 the gradients too, 3 the weights too; with a
    pipeline only 1."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in main memory and update there (slower); ZeRO stages 1 to 3 without a pipeline."""


class OptimizerSection(Section):
    """AdamW (torch.optim.AdamW on the fp32 master weights)."""

    lr: PositiveFloat = 1e-3
    """Peak learning rate; the schedule multiplies it."""
    betas: tuple[Probability, Probability] = (0.9, 0.98)
    """Decay rates of the first and second moments."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay of the parameters that decay."""
    no_decay: tuple[Literal["norms", "biases", "embeddings", "gains"], ...] = ("norms", "biases", "gains")
    """Groups of parameters without weight decay."""
    clip_norm: NonNegativeFloat = 1.0
    """Global gradient norm above which gradients are scaled down; 0 never clips."""


class TrainSection(Section):
    """Length, precision and randomness."""

    max_steps: PositiveInt = 1000
    """Optimizer steps of the whole experiment; the schedule ends here."""
    stop_at_step: PositiveInt | None = None
    """End this session early after this step, without changing the schedule."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16: bf16 parameters and gradients, fp32 masters and accumulation. fp16 needs a GPU."""
    seed: NonNegativeInt = 1234
    """Seeds initialisation, data order, noise and dropout, each by its own names."""
    activation_checkpointing: NonNegativeInt = 0
    """Keep activations only every k layers and recompute the rest in the backward pass; 0 keeps all."""
    canary: bool = False
    """Before training, compare two steps of a small copy of the model in this layout with one process, and stop on a
    difference."""
    threads: NonNegativeInt = 0
    """CPU threads of each process; 0: cores divided by the processes of this machine."""

    @property
    def last_step(self) -> int:
        """The step after which this session ends."""
        return self.stop_at_step or self.max_steps


class EvaluationSection(Section):
    """Validation: plain cross-entropy on fixed samples."""

    interval: NonNegativeInt = 100
    """Steps between validations; 0: only at the end."""
    samples: PositiveInt = 64
    """Validation samples used each time, the same ones always (fewer if the split is smaller)."""


class MonitorsSection(Section):
    """What is measured per layer while training."""

    interval: NonNegativeInt = 50
    """Steps between two samples of the per-layer signals; 0: never. Step 1 is sampled too, and where the interval is
    longer than 10 also steps 2, 5 and 10: a run that jumps does so at once."""
    probe_samples: PositiveInt = 4
    """Validation samples that every sampled step runs through the model, for the signals measured on fixed data."""
    effective_rank: bool = False
    """Also measure the effective rank of each layer's output: a singular value decomposition a layer and sample."""
    log_interval: PositiveInt = 1
    """Steps between two lines of metrics.jsonl."""
    spike_window: Annotated[int, Field(ge=4)] = 128
    """Losses that spike_score compares a step's loss with."""
    tensorboard: bool = True
    """Write scalars for TensorBoard below RUN/tensorboard."""
    wandb: bool = False
    """Show the same scalars in Weights & Biases; needs the package wandb, which keeps its files below RUN/wandb."""


class VerdictsSection(Section):
    """From where on a signal is worth a look (watch) or tells of a run in trouble (alarm), each a pair [watch, alarm],
    null for never; judged with every sample of the depth signals."""

    attention_logit_max: Bounds = (50.0, 100.0)
    """Largest |logit|; beyond about 100 softmax is one-hot (ViT-22B; QK-Clip clips at 100)."""
    attention_logits_above_100: Bounds = (0.0, 0.001)
    """Share of the logits beyond 100."""
    attention_entropy_mean: LowBounds = (0.1, 0.02)
    """Entropy / log(visible keys), mean over a layer's heads, below which attention is one-hot. Alone it proves
    nothing: an alarm needs logits above their watch as well."""
    norm_input_growth: Bounds = (10.0, 100.0)
    """Growth of a norm's input since step 1; its gradient falls as the inverse (DeepNet). The bounds are a guess."""
    norm_input_gradient: LowBounds = (1e-3, 1e-6)
    """The gradient through a norm against the median over the layers of its stack. The bounds are a guess."""
    gradient_norm_jump: Bounds = (10.0, 100.0)
    """A layer's gradient norm against the median of its last samples, where it is at least a tenth of the whole; a
    spike, first of the embedding, comes a few steps before a collapse (GLM-130B). The bounds are a guess."""
    gradient_norm_zero: Bounds = (1.0, 3.0)
    """Samples in a row in which no gradient reached a layer."""
    update_ratio: Bounds = (0.1, 1.0)
    """A step's change against the size of the weights; about 0.001 is usual. The bounds are a guess."""
    adam_rms: Bounds = (2.3, 10.0)
    """sqrt(mean(g^2 / v)); from 2.3 on Wortsman et al. 2023 speak of a spike, which the loss follows."""
    qk_norm_gain_max: Bounds = (4.0, 8.0)
    """Largest gain of a QK-norm; sqrt(d_h) gain^2 bounds the logits: 128 and 512 at d_h = 64."""
    token_cosine: Bounds = (0.99, None)
    """Mean cosine of two tokens of a sample, near 1 where they have become alike (Bamboo). No alarm by default: young
    models that learn well pass through it. The bound is a guess."""
    high_frequency_ratio: LowBounds = (0.1, None)
    """Share of a layer's output in which tokens differ; about sqrt(1 - token_cosine)."""
    effective_rank: LowBounds = (2.0, 1.2)
    """Directions in which a layer's outputs lie; 1 is one. The bounds are a guess."""
    source_use: LowBounds = (0.05, None)
    """Nats a token by which the validation loss rises when samples exchange their sources; near zero the decoder
    ignores its encoder. Judged at evaluations after the warm-up. The bound is a guess."""
    model_update_stuck: Bounds = (0.8, 0.95)
    """Share of the model's whole update that was made in the first 10 steps, where it has hardly moved for 20 steps
    since: how Post-LN fails without warm-up (DeepNet). The bounds are a guess."""
    spike_score: Bounds = (6.0, 12.0)
    """Robust deviations of the loss above its last values; 6 is where OLMo-core throws a step away."""
    skipped_steps: Bounds = (0.0, 5.0)
    """Batches of the last 100 steps that were thrown away, for whatever reason. The bounds are a guess."""
    nonfinite_steps: Bounds = (0.0, 2.0)
    """Of these, the ones whose loss or gradient was not finite; overflows of fp16's dynamic loss scale are not counted.
    The bounds are a guess."""

    @classmethod
    def worse_below(cls, signal: str) -> bool:
        """Whether a signal gets worse as its figure falls."""
        return LOW in cls.model_fields[signal].metadata


class PolicySection(Section):
    """What is done by itself against instability; nothing of it unless stated. A step whose gradient is not finite is
    never made, whatever stands here."""

    on_outlier: tuple[Literal["skip", "scale_rate"], ...] = ()
    """For a step whose loss or gradient norm lies more than policy.sigmas robust deviations above the last ones, or
    whose loss is not finite. skip: it is not made, and its samples are never used again."""
    on_spike: Actions = ()
    """When policy.spike_steps batches in a row were outliers or had a spike score above policy.spike_score."""
    on_not_finite: Actions = ()
    """When policy.not_finite_steps batches in a row had a loss or gradient that is not finite. Overflows of fp16's
    dynamic loss scale are not counted."""
    on_alarm: Actions = ()
    """When a verdict rises to alarm."""
    alarm_signals: tuple[str, ...] = ()
    """Verdicts that policy.on_alarm goes by, such as attention_logit_max; empty: all."""
    window: Annotated[int, Field(ge=8)] = 128
    """Steps whose losses and gradient norms outliers and spikes are measured against (OLMo-core: 128)."""
    sigmas: PositiveFloat = 6.0
    """Robust deviations from which on a step is an outlier (OLMo-core: 6)."""
    spike_score: PositiveFloat = 6.0
    """Robust deviations of the loss from which on a step counts as a spike."""
    spike_steps: PositiveInt = 3
    """Batches in a row that make a spike."""
    not_finite_steps: Annotated[int, Field(ge=1, le=10)] = 3
    """Batches in a row that are not finite before policy.on_not_finite; after 10 the run ends in any case."""
    rate_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """scale_rate: factor on the learning rate."""
    rate_steps: PositiveInt = 100
    """scale_rate: steps for which it holds."""
    skip_samples: NonNegativeInt = 0
    """rollback: samples after the checkpoint that are left out; at least those up to the batch that led to it."""
    max_rollbacks: PositiveInt = 3
    """Rollbacks within policy.window_steps steps; where another one would follow, the run stops."""
    window_steps: PositiveInt = 1000
    """Steps over which rollbacks are counted."""


class CheckpointSection(Section):
    """Layout-free checkpoints below RUN/checkpoints."""

    interval: NonNegativeInt = 100
    """Steps between saves (the last step is always saved); 0: only at the end."""
    keep_last: PositiveInt = 3
    """Newest checkpoints that are kept."""
    keep_every: NonNegativeInt = 0
    """Checkpoints whose step is a multiple of this are kept for ever, beside the newest; 0: none."""
    verify_resume: bool = True
    """Stop if the first loss after a resume is not the one that belongs there."""
    asynchronous: bool = True
    """Training goes on while a copy of the state is written; the last save of a session is always waited for."""


class WatchdogSection(Section):
    """When training that stands still is ended (exit code 77), so that it can be started again."""

    timeout: NonNegativeFloat = 60.0
    """Seconds without any progress (a layer, a step) on any rank; grows to three times the longest gap seen in a step.
    0: no watchdog."""
    first_step: NonNegativeFloat = 600.0
    """Seconds without progress allowed while a session starts and in its first step."""
    save: NonNegativeFloat = 600.0
    """Seconds that a save may hold up training."""
    start: NonNegativeFloat = 300.0
    """Seconds without a sign of life that a rank may be slow in its imports, or at any other work of the start."""


class Experiment(Section):
    """One experiment: all that decides its result."""

    name: Annotated[str, Field(pattern=NAME, max_length=NAME_LENGTH)] = "experiment"
    """Name of the run: letters of English, digits, dot, dash and underscore, a letter or digit first, at most 200."""
    run: RunSection = RunSection()
    model: ModelSection = Field(default_factory=ModelSection)
    objective: ObjectiveChoice = Field(default_factory=OBJECTIVES.config("span_denoising"))  # type: ignore[valid-type]
    """The objective and its own keys; chosen by `kind`."""
    loss: LossSection = LossSection()
    data: DataSection = DataSection()
    batch: BatchSection = BatchSection()
    parallel: ParallelSection = ParallelSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleChoice = Field(default_factory=SCHEDULES.config_types()[0])  # type: ignore[valid-type]
    """The learning-rate schedule and its own keys; chosen by `kind`."""
    train: TrainSection = TrainSection()
    evaluation: EvaluationSection = EvaluationSection()
    monitors: MonitorsSection = MonitorsSection()
    verdicts: VerdictsSection = VerdictsSection()
    policy: PolicySection = PolicySection()
    checkpoint: CheckpointSection = CheckpointSection()
    watchdog: WatchdogSection = WatchdogSection()

    @property
    def run_dir(self) -> str:
        return str(Path(self.run.dir or f"runs/{self.name}").expanduser())
