"""Numbers that a model gives for answers, without writing any: a reward, a likelihood, how right each step is.

Rows of like length are read together, padded on the right under a mask. On the CPU numbers are float64: padding and
batches then show behind the ninth digit, and nothing of them is left in scores that are rounded to `DIGITS`. On a GPU
numbers are the checkpoint's own (bfloat16), and the last bits depend on the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from factory.engine.collector import importing
from factory.engine.errors import FactoryError
from factory.teacher import checkpoint

if TYPE_CHECKING:
    import torch

DIGITS = 6
"""Decimal places of scores from 0 to 1."""
BATCH_TOKENS = 1 << 14  # with padding
LOGITS = 1 << 26  # numbers that come out of a batch

Prompt = str | Sequence[Mapping[str, str]]
"""A text, or messages."""


class Scorer:
    """A model of a folder in Hugging Face's form (or a name that the hub's cache or the network gives).

    A row that is longer than the model is made for, or has no tokens, has no number: None. FactoryError where there is
    no such model. The model is loaded at the first call.
    """

    architecture: ClassVar[str]
    """The class of `transformers` that loads it."""

    def __init__(self, model: str, revision: str = "", batch_tokens: int = BATCH_TOKENS) -> None:
        self.model, self.revision, self.batch_tokens = model, revision, batch_tokens
        checkpoint.content(model)

    @cached_property
    def tokenizer(self) -> Any:
        return checkpoint.tokenizer_of(self.model, self.revision)

    @cached_property
    def network(self) -> Any:
        with importing("transformers"):
            import torch
            import transformers

            kind = getattr(transformers, self.architecture)

        transformers.utils.logging.disable_progress_bar()  # its bar and the run's would write over each other
        gpu = torch.cuda.is_available()
        try:
            loaded, found = kind.from_pretrained(
                self.model,
                revision=self.revision or "main",
                dtype="auto" if gpu else torch.float64,
                output_loading_info=True,
            )
        except Exception as error:  # of many kinds, according to what is missing or broken
            raise FactoryError(f"{self.model}: cannot be loaded: {str(error).splitlines()[0]}") from error
        if found["missing_keys"]:
            raise FactoryError(
                f"{self.model}: has no {min(found['missing_keys'])}, which {self.architecture} needs: give a model of "
                "that kind"
            )
        return loaded.to("cuda" if gpu else "cpu").eval()

    def _logits(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, torch.Tensor]]:
        """The logits of each row that can be read, with its number, in no order."""
        import torch

        config = self.network.config
        most = getattr(config, "max_position_embeddings", None) or float("inf")
        order = sorted((row for row, ids in enumerate(rows) if 0 < len(ids) <= most), key=lambda row: -len(rows[row]))
        wide = self._outputs
        while order:
            longest = len(rows[order[0]])
            size = max(1, min(self.batch_tokens, LOGITS // wide) // longest)
            taken, order = order[:size], order[size:]
            # A classifier reads at the last id that is not this one, so no row may end with it.
            ends = {rows[row][-1] for row in taken}
            config.pad_token_id = next(id_ for id_ in range(config.vocab_size) if id_ not in ends)
            ids = torch.full((len(taken), longest), config.pad_token_id)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(taken):
                ids[place, : len(rows[row])] = torch.tensor(rows[row])
                mask[place, : len(rows[row])] = 1
            device = self.network.device
            with torch.inference_mode():
                logits = self.network(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
            yield from zip(taken, logits, strict=True)

    @property
    def _outputs(self) -> int:
        """Numbers that come out of a token."""
        return 2

    def _asked(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt, up to where the answer begins."""
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        text = self._rendered(prompt, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _said(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _rendered(self, messages: Sequence[Mapping[str, str]], **how: bool) -> str:
        if not self.tokenizer.chat_template:
            raise FactoryError(f"{self.model}: its tokenizer has no chat template, and the prompts are messages")
        return str(self.tokenizer.apply_chat_template([dict(one) for one in messages], tokenize=False, **how))


class Rewards(Scorer):
    """A reward model: a sequence classifier with one number, read at the last token of prompt and answer.

    A text ends with the tokenizer's end of text, a conversation as its chat template ends it: so TRL's RewardTrainer
    learns them.
    """

    architecture = "AutoModelForSequenceClassification"

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        """The number of each answer."""
        if self.network.config.num_labels != 1:
            raise FactoryError(
                f"{self.model}: gives {self.network.config.num_labels} numbers; a reward model gives one"
            )
        found: list[float | None] = [None] * len(prompts)
        rows = [self._whole(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        for row, logits in self._logits(rows):
            found[row] = logits[0].item()
        return found

    def _whole(self, prompt: Prompt, response: str) -> list[int]:
        if isinstance(prompt, str):
            end = self.tokenizer.eos_token or ""
            whole = prompt + response
            return list(self.tokenizer(whole if end and whole.endswith(end) else whole + end)["input_ids"])
        return self._said(self._rendered([*prompt, {"role": "assistant", "content": response}]))


class Likelihoods(Scorer):
    """A causal language model: how likely it is to give an answer."""

    architecture = "AutoModelForCausalLM"

    @property
    def _outputs(self) -> int:
        return int(self.network.config.vocab_size)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        """The mean log-probability, in nats, of an answer's tokens after its prompt."""
        import torch

        asked, said = [self._asked(one) for one in prompts], [self._said(one) for one in responses]
        rows = [a + s if a and s else [] for a, s in zip(asked, said, strict=True)]
        found: list[float | None] = [None] * len(rows)
        for row, logits in self._logits(rows):
            begin, end = len(asked[row]), len(rows[row])
            known = logits[begin - 1 : end - 1].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            ids = torch.tensor(said[row], device=known.device)
            found[row] = known.gather(1, ids[:, None]).mean().item()
        return found


class Steps(Scorer):
    """A process reward model: a token classifier with the labels wrong and right, read at the last token of each step,
    which are tokenized one by one."""

    architecture = "AutoModelForTokenClassification"

    @property
    def rule(self) -> Any:
        """How a chain is cut in steps: a rule of factory.verify.steps."""
        return getattr(self.network.config, "step_rule", "lines")

    def __call__(self, prompts: Sequence[Prompt], chains: Sequence[Sequence[str]]) -> list[list[float] | None]:
        """The probability that a step is right, of each step of each chain."""
        if (many := self.network.config.num_labels) != 2:
            raise FactoryError(f"{self.model}: has {many} labels; wrong and right are two")
        end = getattr(self.network.config, "step_separator", "")
        rows, places = [], []
        for prompt, steps in zip(prompts, chains, strict=True):
            ids, ends = self._asked(prompt), []
            for step in steps:
                ids += self._said(step.rstrip("\n") + end if end else step)
                ends.append(len(ids) - 1)
            rows.append(ids if ends else [])
            places.append(ends)
        found: list[list[float] | None] = [None] * len(rows)
        for row, logits in self._logits(rows):
            found[row] = logits[places[row]].double().softmax(-1)[:, 1].tolist()
        return found
