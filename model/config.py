"""What a training recipe says: the model's shape, the data, the optimizer, the course of training.

A recipe is a TOML file with the sections [model], [data], [optimizer], [train], [probe], and a [[stage]] for each part
of a curriculum; each key is a field below. A section [scaling] makes it a grid of trainings (model/scaling).
model/recipe.py reads and checks it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from factory.engine.errors import FactoryError
from model.attention import DualChunk
from model.rope import RopeScaling
from model.scaling import SCALING, Grid

Documents = Literal["joined", "masked", "restarted"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a transformer; names and meaning are those of Hugging Face's configurations of the three forms."""

    preset: str = ""
    """A published size, such as `qwen2.5-0.5b` (all: model/presets.py): it gives every value that is not said here."""
    model_type: Literal["qwen2", "qwen2_moe", "llama"] = "qwen2"
    """`qwen2` is dense, `qwen2_moe` a mixture of experts, `llama` dense without bias on q, k and v."""
    vocab_size: int = 0
    """Rows of the embedding; 0 takes the number of tokens of the data's tokenizer."""
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 2048
    """The longest sequence that the model is made for."""
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    """A table [model.rope_scaling] stretches the positions, see model/rope.py."""
    dual_chunk_attention_config: DualChunk | None = None
    """A table [model.dual_chunk_attention_config] turns dual chunk attention on, see model/attention.py."""
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    tie_word_embeddings: bool = True
    """One matrix for the embedding and the output layer."""
    num_experts: int = 0
    """qwen2_moe only, like all below: the routed experts of a layer."""
    num_experts_per_tok: int = 4
    """The experts that each token goes to."""
    moe_intermediate_size: int = 192
    """The size of a routed expert."""
    shared_expert_intermediate_size: int = 768
    norm_topk_prob: bool = False
    """The weights of a token's experts sum to 1."""
    decoder_sparse_step: int = 1
    """Each so many-th layer has experts."""
    mlp_only_layers: tuple[int, ...] = ()
    """Layers without experts in any case, counted from 0."""
    router_aux_loss_coef: float = 0.001
    """The weight of the load-balancing loss."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def sparse(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has experts."""
        if self.model_type != "qwen2_moe" or layer in self.mlp_only_layers:
            return False
        return (layer + 1) % self.decoder_sparse_step == 0

    def check(self) -> None:
        """Raises FactoryError where the numbers do not fit together."""
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rope_theta"):
            if getattr(self, name) <= 0:
                raise FactoryError(f"model.{name} = {getattr(self, name)}: must be above 0")
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise FactoryError(
                f"model.hidden_size = {self.hidden_size} must be an even multiple of "
                f"num_attention_heads = {self.num_attention_heads}"
            )
        if self.num_key_value_heads <= 0 or self.num_attention_heads % self.num_key_value_heads:
            raise FactoryError(
                f"model.num_attention_heads = {self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )
        for part in (self.rope_scaling, self.dual_chunk_attention_config):
            if part is not None:
                part.check()
        if self.model_type != "qwen2_moe":
            if self.num_experts:
                raise FactoryError(
                    f"model.num_experts = {self.num_experts}: only model_type = 'qwen2_moe' has experts, "
                    f"this is {self.model_type!r}"
                )
            return
        for name in ("num_experts", "moe_intermediate_size", "shared_expert_intermediate_size", "decoder_sparse_step"):
            if getattr(self, name) <= 0:
                raise FactoryError(f"model.{name} = {getattr(self, name)}: must be above 0")
        if not 0 < self.num_experts_per_tok <= self.num_experts:
            raise FactoryError(
                f"model.num_experts_per_tok = {self.num_experts_per_tok}: must be between 1 and "
                f"num_experts = {self.num_experts}"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The token shards and how they are read."""

    path: str = ""
    """A dataset folder made by a recipe with `tokens.Pack`; on the command line: `data=FOLDER`."""
    sets: dict[str, str] = field(default_factory=dict)
    """Instead of `path`, a table [data.sets] of several datasets: a name of your own = its folder."""
    weights: dict[str, float] = field(default_factory=dict)
    """A table [data.weights]: the share of the tokens that comes from each set, in any unit. Without it each has its
    share of all tokens. A set that is not named in it is not read."""
    seed: int = 0
    """Decides the order of the sequences."""
    evaluation_share: float = 0.02
    """The share of the data that is held out for evaluation: whole shards where there are enough of them."""
    shuffle_tokens: int = 1 << 26
    """Sequences are shuffled among about so many tokens, which are held in memory, and as many that are read ahead
    (4 bytes a token)."""
    documents: Documents = "joined"
    """What a token sees of a packed sequence. `joined`: all before it, other documents too (UltraLong); `masked`: only
    its own document, while positions run on (as in transformers, unless it is given position_ids); `restarted`: and
    positions begin at 0 in each document. The last two differ only with dual chunk attention."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over time."""

    learning_rate: Annotated[float, SCALING] = 1e-3
    """The highest, after the warm-up. `scaling` takes what optimizer.scaling says; training sees a number."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """After the warm-up: `cosine` and `linear` fall at once, `wsd` stays at the top and falls in a straight line at the
    end, `constant` stays."""
    warmup_steps: int = 100
    decay_share: float = 0.2
    """wsd only: the share of all steps in which the rate falls."""
    final_share: float = 0.1
    """The last learning rate as a share of the highest."""

    def check(self, where: str, steps: int) -> None:
        """Raises FactoryError where the numbers do not fit together over so many steps."""
        for name in ("decay_share", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise FactoryError(f"{where}.{name} = {getattr(self, name)}: must lie between 0 and 1")
        falling = round(self.decay_share * steps)
        if self.schedule == "wsd" and self.warmup_steps + falling > steps:
            raise FactoryError(
                f"{where}.warmup_steps = {self.warmup_steps} and a decay of {falling} steps are more than the "
                f"{steps} steps of the schedule"
            )

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 1 .. steps."""
        top, low = self.learning_rate, self.learning_rate * self.final_share
        if step <= self.warmup_steps:
            return top * step / self.warmup_steps
        if self.schedule == "cosine":
            done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
            return low + (top - low) * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "constant":
            return top
        falling = steps - self.warmup_steps if self.schedule == "linear" else round(self.decay_share * steps)
        falling = max(1, falling)
        return top - (top - low) * max(0.0, (step - (steps - falling)) / falling)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Schedule):
    """The optimizer, and its learning rate over time."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon on the matrices of the layers, AdamW on the rest, at one learning rate (model/muon.py)."""
    scaling: str = "step"
    """The law for what is `scaling`: `step`, `deepseek`, or a law.json that model.scaling wrote."""
    beta1: float = 0.9
    """AdamW's, like the next two."""
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    """On matrices; not on biases and norms."""
    clip: float = 1.0
    """The gradient's norm is cut to this."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The course of training."""

    steps: int = 1000
    """Of a training without stages."""
    batch_size: Annotated[int, SCALING] = 16
    """Sequences in a step, or `scaling`, as the law optimizer.scaling says; of a later stage with longer sequences as
    many as have the tokens of the first one's."""
    micro_batch_size: int = 0
    """At most so many sequences of full length are in a process's memory at once; their gradients add up. 0 for all
    of its part of a step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the layers compute in; weights, sums of gradients and the optimizer stay in float32."""
    compile: bool = False
    """Each layer by torch.compile: minutes at the start, then faster steps on a GPU."""
    checkpoint_activations: bool = False
    """Keep each layer's input alone and compute the rest again on the way back: less memory, a third more work."""
    context_parallel: int = 1
    """So many successive processes share each sequence, and the memory that its activations need."""
    seed: int = 0
    """Decides the initial weights."""
    start: str = ""
    """A checkpoint folder in Hugging Face's form whose weights training begins with. Without `model.preset` its
    configuration stands for [model], and keys given there win."""
    upcycle: str = ""
    """A dense checkpoint folder in Hugging Face's form from which a qwen2_moe model starts (model/upcycle.py)."""
    evaluate_every: int = 200
    """Steps between evaluations on the held-out data; there is one at the end in any case."""
    evaluation_sequences: int = 128
    """At most so many held-out sequences are used."""
    save_every: int = 200
    """Steps between checkpoints; a killed training goes on from the last one."""
    threads: int = 0
    """CPU threads; 0 for one on each core. Another number may change the last bits of the weights."""
    tensorboard: bool = False
    """Also write tensorboard/ in the run folder (needs the package tensorboard)."""
    sample_prompt: str = "Returns a new"
    """What the sample at the end continues."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A part of a length curriculum. What it leaves out is as in the stage before, the first time as in the recipe."""

    name: str = ""
    """For the metrics and the command line (`stage.NAME.tokens=…`); empty for its number, from 1."""
    tokens: int = 0
    """The tokens to train on; rounded up to whole steps."""
    sequence_length: int = 0
    """Tokens in a sequence; the first time, if 0, as the data are packed. Any length goes with any data: a shard is
    read as one run of tokens."""
    batch_size: int = 0
    """Sequences in a step; 0 for as many as have the tokens of a step of the stage before, at least one."""
    rope_theta: float = 0.0
    """A new base of the rotary positions (adjusted base frequency, arXiv 2309.16039)."""
    rope_scaling: RopeScaling | None = None
    dual_chunk_attention_config: DualChunk | None = None
    documents: Documents | None = None
    maximum_share: float | None = None
    """The share of the tokens in sequences of the full length; the first time, if left out, 1. The rest is cut into
    halves, quarters and eighths, in equal parts (Qwen2.5-Turbo: 0.4; the report says only that the others are
    shorter)."""
    weights: dict[str, float] = field(default_factory=dict)
    """As [data.weights], for this stage."""
    until: float = 0.0
    """The stage ends when the probe reaches this accuracy (0 to 1), or after its `tokens` at the latest. Its schedule
    must be `constant`: another would need to know how long it takes."""
    optimizer: Schedule | None = None
    """A table [stage.optimizer] begins a schedule of the learning rate with this stage, which lasts until another
    stage begins one; keys that it leaves out are as in [optimizer]."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Questions that the model in training answers greedily, judged by a verifier (model/probe.py)."""

    data: str = ""
    """A dataset folder with the column `prompt` (text) and what the reward needs; without it nothing is asked."""
    reward: str = ""
    """Such as `factory.verify.mathematics:correct`; an answer counts as right where it passes."""
    columns: dict[str, str] = field(default_factory=dict)
    """What a reward's parameter is called in the data, where the names differ: `answer = "gold"`."""
    every: int = 50
    """Steps between probes; there is one at the end of each stage in any case."""
    count: int = 200
    """So many of the dataset's first rows are asked."""
    max_new_tokens: int = 64


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """A whole training recipe."""

    name: str = "model"
    """The run folder is runs/train/NAME; on the command line `out=FOLDER` says another."""
    out: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    stages: tuple[StageConfig, ...] = ()
    scaling: Grid = field(default_factory=Grid)
