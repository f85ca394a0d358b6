"""Our transformer as a model of the transformers package: what TRL's trainers train.

Parameters have the same names as in transformers' own Qwen2, so that checkpoints of either load as the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, Trainer
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeModelOutputWithPast
from trl.trainer.utils import FusedCausalLMOutput

from factory.engine.errors import FactoryError
from model.attention import Documents
from model.checkpoint import ARCHITECTURES, describe, load_hf
from model.generate import Generator, end_ids, load_tokenizer
from model.loss import CPU_LOGITS, GPU_LOGITS
from model.moe import Routing
from model.sample import Sampling
from model.transformer import Decoder, Transformer


class Backbone(nn.Module):
    """Token ids to hidden states, as transformers' models without their head: padding left or right, packed documents.

    It holds the decoder's modules under their own names, not the decoder.
    """

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        decoder = transformer.model
        self.embed_tokens, self.layers, self.norm = decoder.embed_tokens, decoder.layers, decoder.norm
        self._decoder = [decoder]  # in a list, so that its parameters are not listed twice

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_router_logits: bool = False,
        **_: Any,
    ) -> MoeModelOutputWithPast:
        """`attention_mask` [B, T]: padding (0) stands before or behind the tokens of a row, or both. `position_ids`
        [B, T] that begin anew at 0 mark the documents of packed rows; positions restart in each."""
        routings: list[Routing] | None = [] if output_router_logits else None
        decoder = self._decoder[0]
        documents = None
        if position_ids is not None and bool((position_ids[:, 1:] == 0).any()):
            documents = Documents(position_ids == 0, restart=True)
        before = _padding_before(attention_mask)
        if attention_mask is not None and routings is None and not input_ids.is_cuda and not attention_mask.all():
            hidden = _without_padding(decoder, input_ids, attention_mask.bool())
        elif before is None:
            hidden = decoder(input_ids, documents=documents, routings=routings)
        else:
            # Each row is turned so that its tokens begin at place 0, where positions begin; padding behind them is
            # seen by none of them.
            length = input_ids.shape[1]
            places = torch.arange(length, device=input_ids.device)
            there = (places + before[:, None]) % length
            back = (places - before[:, None]) % length
            hidden = decoder(input_ids.gather(1, there), routings=routings)
            hidden = hidden.gather(1, back[:, :, None].expand_as(hidden))
        logits = None if routings is None else tuple(routing.logits for routing in routings)
        return MoeModelOutputWithPast(last_hidden_state=hidden, router_logits=logits)  # type: ignore[arg-type]


def _without_padding(decoder: Decoder, ids: Tensor, mask: Tensor) -> Tensor:
    """The hidden states [B, T, C] of rows with padding, 0 there: their tokens as documents of one row."""
    places = mask.flatten().nonzero()[:, 0]
    begins = torch.zeros_like(mask)
    begins[torch.arange(len(mask), device=mask.device), mask.to(torch.int8).argmax(1)] = True
    documents = Documents(begins.flatten()[places][None], restart=True)
    hidden = decoder(ids.flatten()[places][None], documents=documents)[0]
    whole = hidden.new_zeros(mask.numel(), hidden.shape[1])
    return whole.index_put((places,), hidden).view(*mask.shape, -1)


def _padding_before(attention_mask: Tensor | None) -> Tensor | None:
    """[B] the padding before each row's first token; None where there is none in any."""
    if attention_mask is None:
        return None
    before = attention_mask.to(torch.int8).argmax(1)
    return before if bool(before.any()) else None


class LanguageModel(PreTrainedModel):
    """A `Transformer` with the interface that TRL's trainers use: forward, generate, save_pretrained."""

    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _no_split_modules = ["Layer"]
    _supports_sdpa = True
    supports_gradient_checkpointing = False  # by its own way: model.parallel.checkpoint_layers
    main_input_name = "input_ids"
    temperature = 1.0
    """What logits are divided by where log-probabilities are asked for."""

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer | None = None, end: list[int] | None = None):
        config = AutoConfig.for_model(**describe(transformer.config))
        config.auto_map = {}  # TRL reads it of a class that is not the architecture's own
        super().__init__(config)
        self.model = Backbone(transformer)
        self.lm_head = transformer.lm_head
        self._transformer = [transformer]
        self._tokenizer = tokenizer
        self.end = end[0] if end and len(end) == 1 else end or None
        self.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=(end or [0])[0])

    @classmethod
    def load(cls, folder: str | Path) -> LanguageModel:
        """The checkpoint in a folder, in float32: what is trained is kept whole, whatever computes in less."""
        folder = Path(folder)
        return cls(load_hf(folder).float(), load_tokenizer(folder), end_ids(folder))

    @property
    def transformer(self) -> Transformer:
        return self._transformer[0]

    def _init_weights(self, module: nn.Module) -> None:
        """They are there already."""

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int = 0,
        labels: Tensor | None = None,
        fused_lm_head: bool = False,
        **more: Any,
    ) -> CausalLMOutputWithPast | FusedCausalLMOutput:
        """`logits_to_keep`: only the logits of so many last places; 0 for all. With `fused_lm_head`, TRL's word for it,
        no logits but what it asks of the places whose next token is a label (not -100)."""
        hidden = self.model(input_ids, attention_mask, position_ids, **more).last_hidden_state
        if fused_lm_head:
            assert labels is not None
            return self._scores(hidden[:, :-1], labels[:, 1:])
        return CausalLMOutputWithPast(logits=self.lm_head(hidden[:, -logits_to_keep:]))

    def _scores(self, hidden: Tensor, labels: Tensor) -> FusedCausalLMOutput:
        """Of each label its log-probability, whether it is the likeliest, and of all tokens there the entropy and the
        mean logit; 0 elsewhere. Logits are made for the labels alone, some at a time, and again for the gradient."""
        mask = labels >= 0
        places = mask.flatten().nonzero()[:, 0]
        x, targets = hidden.flatten(0, 1)[places], labels.flatten()[places]
        weight = self.lm_head.weight
        at_once = max(1, (GPU_LOGITS if x.is_cuda else CPU_LOGITS) // len(weight))
        parts = [
            checkpoint(_score, rows, weight, goal, self.temperature, use_reentrant=False)
            if len(x) > at_once and torch.is_grad_enabled()
            else _score(rows, weight, goal, self.temperature)
            for rows, goal in zip(x.split(at_once), targets.split(at_once), strict=True)
        ]
        likelihood, entropy, likeliest = (torch.cat(some) for some in zip(*parts, strict=True))
        with torch.no_grad():
            mean = x.float() @ weight.float().mean(0) / self.temperature
        log_probs, entropy, mean, top = (
            value.new_zeros(mask.numel()).index_put((places,), value).view_as(mask)
            for value in (likelihood, entropy, mean, likeliest)
        )
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / mask.sum().clamp(min=1),
            log_probs=log_probs,
            entropy=entropy,
            mean_logits=mean,
            is_top1=top,
            label_mask=mask,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **_: Any,
    ) -> Tensor:
        """[B, T + new]: each left-padded prompt continued by sampling, padded on the right.

        Sampled by model/generate.py with a seed drawn from torch's generator. FactoryError for ways of sampling that
        it does not have.
        """
        if self._tokenizer is None:
            raise FactoryError("generation needs the model's tokenizer: load it from its folder")
        chosen = generation_config or self.generation_config
        _refuse(chosen)
        greedy = not chosen.do_sample
        sampling = Sampling(
            tokens=chosen.max_new_tokens,
            temperature=0.0 if greedy else chosen.temperature or 1.0,
            top_p=1.0 if greedy or chosen.top_p is None else chosen.top_p,
            seed=int(torch.randint(2**31, ()).item()),
        )
        end = chosen.eos_token_id if isinstance(chosen.eos_token_id, list) else [chosen.eos_token_id]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = [row[seen.bool()].tolist() for row, seen in zip(input_ids.cpu(), mask.cpu(), strict=True)]
        generator = Generator(self.transformer, self._tokenizer, end=[one for one in end if one is not None])
        found = [completions[0].ids for completions in generator.complete(prompts, sampling)]
        pad = chosen.pad_token_id or 0
        width = max(map(len, found), default=0)
        new = torch.tensor([ids + [pad] * (width - len(ids)) for ids in found], dtype=input_ids.dtype)
        return torch.cat([input_ids, new.to(input_ids.device)], 1)


def is_ours(folder: str | Path, implementation: str) -> bool:
    """Whether our code runs a checkpoint, by what `model.implementation` says; `auto`: where it reads it."""
    kind = json.loads((Path(folder) / "config.json").read_text("utf-8")).get("model_type")
    return implementation == "factory" or (implementation == "auto" and kind in ARCHITECTURES)


def _score(x: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the targets, the entropies, and whether a target is the likeliest: x [N, C], targets [N]."""
    logits = F.linear(x, weight).float()
    spread = torch.log_softmax(logits if temperature == 1 else logits / temperature, -1)
    found = spread.gather(1, targets[:, None])[:, 0]
    with torch.no_grad():
        entropy = -torch.linalg.vecdot(spread.exp(), spread)
        likeliest = spread.argmax(1) == targets
    return found, entropy, likeliest


def score_by_own(trainer: Trainer, temperature: float = 1.0) -> Trainer:
    """Let our models of a trainer compute log-probabilities themselves, instead of by the forward that TRL puts in
    place of theirs: on a CPU that makes the logits of prompts and padding too. Not where experts are balanced, which
    that one does."""
    for name in ("model", "ref_model"):
        model = getattr(trainer, name, None)
        if not isinstance(model, LanguageModel) or getattr(model.config, "output_router_logits", False):
            continue
        model.temperature = temperature
        for put in ("forward", "_original_forward"):
            model.__dict__.pop(put, None)
        if name == "ref_model":
            setattr(trainer, name, trainer.accelerator.prepare_model(model, evaluation_mode=True))
    return trainer


def _refuse(chosen: GenerationConfig) -> None:
    for name, harmless in (("top_k", (None, 0)), ("min_p", (None, 0.0)), ("repetition_penalty", (None, 1.0))):
        value = getattr(chosen, name, None)
        if value not in harmless and (name != "top_k" or chosen.do_sample):
            raise FactoryError(f"generation: {name} = {value} is not a way in which our models sample: leave it out")
