"""Models with a head in place of the output layer: of a reward model a number for an answer, of a process reward model
the odds of each step. On disk they are checkpoints in Hugging Face's form, which its auto classes load.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from factory.engine.errors import FactoryError
from model.checkpoint import describe, load_hf
from model.posttrain.language_model import Backbone, is_ours
from model.transformer import Transformer

HEAD = "score."
"""The names of a head's parameters begin so, in all forms that transformers has of our architectures."""


class Headed(PreTrainedModel):
    """A transformer and a linear head on its hidden states, which begins at zero."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = False  # by its own way: model.parallel.checkpoint_layers
    main_input_name = "input_ids"
    _no_split_modules = ["Layer"]
    auto: ClassVar[Any]
    """The class of transformers that loads it."""
    form: ClassVar[str]
    """What transformers calls such a model, after the name of its architecture."""
    outputs: ClassVar[int]
    bias: ClassVar[bool]
    options: ClassVar[dict[str, Any]] = {}
    """What its configuration says of the head besides."""

    def __init__(self, transformer: Transformer) -> None:
        description = describe(transformer.config)
        kind = description["architectures"][0].removesuffix("ForCausalLM")
        description |= {"architectures": [f"{kind}For{self.form}"], "num_labels": self.outputs, **self.options}
        config = AutoConfig.for_model(**description)
        config.auto_map = {}  # TRL reads it of a class that is not the architecture's own
        super().__init__(config)
        self.model = Backbone(transformer)
        self.score = nn.Linear(transformer.config.hidden_size, self.outputs, bias=self.bias)
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)  # untrained, it prefers nothing
        self._transformer = [transformer]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """A checkpoint folder: of a language model, or of a model with this head. FactoryError for another head."""
        model = cls(load_hf(folder, head=HEAD).float())
        stored = _head(Path(folder))
        expected = {name: tensor.shape for name, tensor in model.score.state_dict().items()}
        if stored and {name: tensor.shape for name, tensor in stored.items()} != expected:
            raise FactoryError(f"{folder}: its head is another than that of a {cls.__name__}")
        if stored:
            model.score.load_state_dict(stored)
        return model

    @property
    def transformer(self) -> Transformer:
        return self._transformer[0]

    def _init_weights(self, module: nn.Module) -> None:
        """They are there already."""

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens


class RewardModel(Headed):
    """One number for an answer, read at a row's last token. `AutoModelForSequenceClassification` loads it."""

    auto = AutoModelForSequenceClassification
    form = "SequenceClassification"
    outputs = 1
    bias = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """`logits` [B, 1], the reward of each row, read at its last token that is no padding."""
        hidden = self.model(input_ids, attention_mask).last_hidden_state
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        last = (mask * torch.arange(input_ids.shape[1], device=input_ids.device)).argmax(1)
        return SequenceClassifierOutput(logits=self.score(hidden[torch.arange(len(last), device=last.device), last]))


class ProcessModel(Headed):
    """Two numbers for each token, wrong and right, read at the last of a step. `AutoModelForTokenClassification` loads
    it."""

    auto = AutoModelForTokenClassification
    form = "TokenClassification"
    outputs = 2
    bias = True
    options: ClassVar[dict[str, Any]] = {
        "id2label": {0: "wrong", 1: "right"},
        "label2id": {"wrong": 0, "right": 1},
        "classifier_dropout": 0.0,
    }

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> TokenClassifierOutput:
        """`logits` [B, T, 2]."""
        return TokenClassifierOutput(logits=self.score(self.model(input_ids, attention_mask).last_hidden_state))


def load_headed(kind: type[Headed], folder: str | Path, implementation: str) -> PreTrainedModel:
    """A checkpoint in float32 with a head, by our code or by transformers'. A language model's head begins anew: ours
    at zero, that of transformers at the same random numbers each time. FactoryError for another head."""
    if is_ours(str(folder), implementation):
        return kind.load(folder)
    told = {"num_labels": kind.outputs, **kind.options, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(folder, **told)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: PreTrainedModel = kind.auto.from_pretrained(
                folder, config=config, dtype=torch.float32, local_files_only=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise FactoryError(
            f"{folder}: cannot be read as {kind.auto.__name__} with {kind.outputs} outputs "
            f"({str(error).strip().splitlines()[0]})"
        ) from error
    return model


def _head(folder: Path) -> dict[str, Tensor]:
    """The parameters of a head that lies in a checkpoint folder; none in that of a language model."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(HEAD)]  # noqa: SIM118 - not a mapping
            found |= {name.removeprefix(HEAD): file.get_tensor(name) for name in names}
    return found
