"""Reward models: a checkpoint's transformer with a head that gives one number for an answer.

On disk they are checkpoints in Hugging Face's form, which `AutoModelForSequenceClassification` loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from model.checkpoint import describe, load_hf
from model.posttrain.language_model import Backbone
from model.transformer import Transformer

HEAD = "score.weight"


class RewardModel(PreTrainedModel):
    """A transformer and a linear head without bias on the hidden state of a row's last token."""

    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules = ["Layer"]

    def __init__(self, transformer: Transformer) -> None:
        description = describe(transformer.config)
        kind = description["architectures"][0].removesuffix("ForCausalLM")
        config = AutoConfig.for_model(
            **(description | {"architectures": [f"{kind}ForSequenceClassification"]}), num_labels=1
        )
        config.auto_map = {}  # TRL reads it of a class that is not the architecture's own
        super().__init__(config)
        self.model = Backbone(transformer)
        self.score = nn.Linear(transformer.config.hidden_size, 1, bias=False)
        nn.init.zeros_(self.score.weight)  # an untrained reward prefers nothing
        self._transformer = [transformer]

    @classmethod
    def load(cls, folder: str | Path) -> RewardModel:
        """A checkpoint folder: of a language model, whose head begins at zero, or of a reward model with its head."""
        heads = [load_file(path)[HEAD] for path in sorted(Path(folder).glob("*.safetensors")) if _has_head(path)]
        model = cls(load_hf(folder, head=HEAD).float())
        if heads:
            with torch.no_grad():
                model.score.weight.copy_(heads[0])
        return model

    @property
    def transformer(self) -> Transformer:
        return self._transformer[0]

    def _init_weights(self, module: nn.Module) -> None:
        """They are there already."""

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """`logits` [B, 1], the reward of each row, read at its last token that is no padding."""
        hidden = self.model(input_ids, attention_mask).last_hidden_state
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        last = (mask * torch.arange(input_ids.shape[1], device=input_ids.device)).argmax(1)
        return SequenceClassifierOutput(logits=self.score(hidden[torch.arange(len(last), device=last.device), last]))


def _has_head(path: Path) -> bool:
    with safe_open(path, "pt") as file:
        return HEAD in file.keys()  # noqa: SIM118 - not a mapping
