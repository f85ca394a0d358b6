"""Trainers that learn from what the model samples itself: GRPO, and DPO on the best and the worst of its samples.

Both are TRL's GRPOTrainer: its sampling, its rewards, its saves. What it would learn nothing from is left out: a group
of samples of one prompt whose rewards are all the same (or all unknown) has no part in the loss, in what the loss is
divided by, in the divergence from the reference, nor in the forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from model.posttrain.language_model import score_by_own
from model.verifier import ROWS

SAMPLED = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


class Sampled(GRPOTrainer):
    """What both share: the rewards of this process's groups, and the reference's log-probabilities on demand.

    `reference` is the starting model; without one there is no divergence to measure.
    """

    def __init__(self, *, args: GRPOConfig, reference: PreTrainedModel | None = None, **more: Any) -> None:
        super().__init__(args=args, **more)
        self.rewarded = torch.zeros(0)
        # Not by TRL's beta: it would load the reference by the name in the configuration, which ours does not have.
        self.ref_model = None
        if reference is not None:
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        score_by_own(self, self.temperature)

    @property
    def _trains(self) -> bool:
        assert self.model is not None
        return bool(self.model.training)

    def _calculate_rewards(self, inputs: list[Any], *more: Any) -> Tensor:
        """[samples of all processes, rewards]; the sums are kept in `rewarded` [groups, samples], nan where unknown."""
        each = super()._calculate_rewards([row | {ROWS: row} for row in inputs], *more)
        total = (each * self.reward_weights.to(each.device)).nansum(1)
        total[each.isnan().all(1)] = torch.nan
        self.rewarded = total.view(-1, self.num_generations if self._trains else self.num_generations_eval)
        return each

    def _groups(self) -> Tensor:
        """[groups of all processes]: whether the rewards differ."""
        high = self.rewarded.nan_to_num(nan=-torch.inf).amax(1)
        low = self.rewarded.nan_to_num(nan=torch.inf).amin(1)
        differ = (high > low) & ~torch.isclose(high, low)
        self._tell("groups_dropped", 1 - differ.float().mean())
        return differ

    def _own(self, values: Tensor, count: int) -> Tensor:
        """Of the values of all processes those of this one, which has `count`."""
        return values[self.accelerator.process_index * count :][:count]

    def _tell(self, name: str, value: Tensor) -> None:
        self._metrics["train" if self._trains else "eval"][name].append(value.item())

    def _reference(self, ids: Tensor, mask: Tensor, keep: int) -> Tensor:
        with torch.no_grad():
            return self._get_per_token_logps_and_entropies(self.ref_model, ids, mask, keep)[0]


class Grpo(Sampled):
    """GRPO (arXiv 2402.03300) with the loss of a token as in DAPO (arXiv 2503.14476): the sum over the tokens of all
    groups that count, by their number."""

    def __init__(self, *, args: GRPOConfig, divergence: float = 0.0, **more: Any) -> None:
        super().__init__(args=args, **more)
        self.divergence = divergence

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Tensor]:
        found = super()._generate_and_score_completions(inputs)
        rows = len(found["completion_ids"])
        kept = self._own(self._groups().repeat_interleave(self.rewarded.shape[1]), rows)
        counted = (found["completion_mask"] * kept[:, None]).sum()
        return found | {"kept": kept, "num_items_in_batch": self.accelerator.gather(counted).sum()}

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        # TRL gathers a number for each row, so that all processes must have as many.
        found = choose(inputs, int(self.accelerator.gather(inputs["kept"].sum()).max()))
        if self.ref_model is None:
            return super()._compute_loss(model, found)
        ids, mask, keep = joined(found)
        found["ref_per_token_logps"] = self._reference(ids, mask, keep)
        self.beta = self.divergence
        try:
            return super()._compute_loss(model, found)
        finally:
            self.beta = 0.0  # TRL's own way to the reference stays closed: it asks before it knows what counts


class OnlineDpo(Sampled):
    """DPO (arXiv 2305.18290) on the best and the worst of the samples of each prompt, as in Qwen2's report (§4.3).

    The loss is the mean over the pairs of a step. A prompt whose best sample is not better than its worst has no pair.
    Log-probabilities are those without temperature: it must be 1 in `args`, and another one in its generation_kwargs.
    """

    def __init__(self, *, args: GRPOConfig, strength: float, sft_weight: float = 0.0, **more: Any) -> None:
        super().__init__(args=args, **more)
        self.strength, self.sft_weight = strength, sft_weight

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Tensor]:
        found = super()._generate_and_score_completions(inputs)
        samples = self.rewarded.shape[1]
        groups = len(inputs) // samples
        kept, rewards = self._own(self._groups(), groups), self._own(self.rewarded, groups)
        best = rewards.nan_to_num(nan=-torch.inf).argmax(1)
        worst = rewards.nan_to_num(nan=torch.inf).argmin(1)
        rows = torch.stack([best, worst], 1) + torch.arange(groups, device=best.device)[:, None] * samples
        pairs = {name: found[name][rows] for name in SAMPLED}
        counted = torch.stack([kept.sum(), (pairs["completion_mask"][:, 0] * kept[:, None]).sum()])
        all_pairs, tokens = self.accelerator.gather(counted[None]).sum(0)
        return pairs | {"kept": kept, "pairs": all_pairs, "chosen_tokens": tokens}

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        found = choose(inputs)
        found |= {name: found[name].transpose(0, 1).flatten(0, 1) for name in SAMPLED}  # the best, then the worst
        ids, mask, keep = joined(found)
        own, _, balance = self._get_per_token_logps_and_entropies(
            model, ids, mask, keep, compute_aux_loss=self.aux_loss_enabled
        )
        spoken = found["completion_mask"]
        margin = self.strength * torch.sub(*((own - self._reference(ids, mask, keep)) * spoken).sum(1).chunk(2))
        there = spoken.any(1).chunk(2)[0]  # none where no pair counts
        loss = -(F.logsigmoid(margin) * there).sum() / self._share(found["pairs"])
        if self.sft_weight:
            said = (own * spoken).chunk(2)[0].sum()
            loss = loss - self.sft_weight * said / self._share(found["chosen_tokens"])
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if self._trains else 1
            loss = loss + self.router_aux_loss_coef * balance / steps
        if bool(there.any()):
            self._tell("rewards/margins", margin.detach().mean())
            self._tell("rewards/accuracies", (margin > 0).float().mean())
        return loss

    def _share(self, count: Tensor) -> Tensor:
        """What a process divides by, where the mean of all processes' gradients is the sum over `count`."""
        return count.clamp(min=1) / self.accelerator.num_processes


def choose(inputs: dict[str, Tensor], least: int = 1) -> dict[str, Tensor]:
    """The rows that count, without the columns that are padding in all of them.

    Where they are fewer than `least`, or none, others in which nothing counts: each process must run the model.
    """
    kept, mask = inputs["kept"], inputs["completion_mask"]
    lacking = max(least, 1) - int(kept.sum())
    taken = kept | ((~kept).cumsum(0) <= lacking)
    whole = inputs | {"completion_mask": mask * kept.view(-1, *[1] * (mask.ndim - 1))}
    rows = {name: value[taken] if value.ndim else value for name, value in whole.items() if name != "kept"}
    columns = {name: rows[name].flatten(0, -2).any(0).nonzero() for name in ("prompt_mask", "completion_mask")}
    first = int(columns["prompt_mask"].min())
    last = int(columns["completion_mask"].max()) + 1 if columns["completion_mask"].numel() else 1
    width = rows["completion_mask"].shape[-1]
    for name, value in rows.items():
        if name.startswith("prompt"):
            rows[name] = value[..., first:]
        elif value.ndim > 1 and value.shape[-1] == width:
            rows[name] = value[..., :last]
    return rows


def joined(found: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """Ids and mask of prompts with their completions, and the width of the completions."""
    ids = torch.cat([found["prompt_ids"], found["completion_ids"]], 1)
    mask = torch.cat([found["prompt_mask"], found["completion_mask"]], 1)
    return ids, mask, found["completion_ids"].shape[1]
