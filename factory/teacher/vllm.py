"""The engine for GPUs: vLLM in this process, fed as it has room, so that its batch never runs empty.

PyPI's `vllm` is the build for CUDA and brings a torch of its own: it belongs in an environment of its own, in which the
factory then runs. A server (`vllm serve`) is asked with the engine `openai` instead.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

from factory.engine.errors import FactoryError
from factory.teacher import checkpoint
from factory.teacher.checkpoint import Unanswerable
from factory.teacher.engine import Ask, Asks, Done, identify
from factory.teacher.request import Choice, Failed, Logprob, Response

AT_ONCE = 1 << 10  # requests that are taken between two steps of the model

SETTINGS = {
    # In this process: the same order of work in every run, and nothing that outlives it where it is killed.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class VLLM:
    """The engine of a model folder, or of a model at a hub, on `gpus` GPUs (tensor parallel).

    `max_length` is the longest prompt with its answer, in tokens; 0 takes what the model is made for, which may need
    more memory than there is. `memory` is the share of a GPU's memory that it takes. FactoryError where there is no
    such model.
    """

    def __init__(
        self, model: str, revision: str = "", *, gpus: int = 1, max_length: int = 0, memory: float = 0.9
    ) -> None:
        self.model, self.revision = model, revision
        self.gpus, self.max_length, self.memory = gpus, max_length, memory
        checkpoint.content(model)
        self.name = identify(model, revision)
        # Engines share no answers: each draws other samples from the same seed.
        self.identity = f"vllm {self.name}"

    def answer(self, asks: Asks, done: Done) -> None:
        """Answer all asks; the model is loaded at the first. What waits is taken between two steps of the model."""
        flying: dict[str, Ask] = {}
        number = 0
        while True:
            taken = asks.take(AT_ONCE, wait=not flying)
            if asks.closed:
                if flying:
                    self._engine.abort_request(list(flying))
                return
            for ask in taken:
                number += 1
                try:
                    self._add(str(number), ask)
                except Unanswerable as error:
                    done([(ask, Failed(str(error), ask.request))])
                else:
                    flying[str(number)] = ask
            if flying:
                finished = [output for output in self._engine.step() if output.finished]
                if finished:
                    ended = [(flying.pop(output.request_id), output) for output in finished]
                    done([(ask, self._response(ask, output)) for ask, output in ended])

    def close(self) -> None:
        if "llm" in self.__dict__:
            self.llm.llm_engine.engine_core.shutdown()
            del self.__dict__["llm"]

    @cached_property
    def llm(self) -> Any:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            from vllm import LLM
        except ImportError as error:
            raise FactoryError(
                "the engine vllm needs the package vllm, in an environment of its own: run the factory from there, or "
                'start `vllm serve` there and ask it with engine = "openai"'
            ) from error
        try:
            return LLM(
                self.model,
                revision=self.revision or None,
                tokenizer_revision=self.revision or None,
                tensor_parallel_size=self.gpus,
                gpu_memory_utilization=self.memory,
                max_model_len=self.max_length or None,
                enable_prefix_caching=True,
            )
        except Exception as error:  # of many kinds: a broken checkpoint, too little memory
            raise FactoryError(f"{self.model}: vLLM cannot load it: {str(error).strip().splitlines()[0]}") from error

    @property
    def _engine(self) -> Any:
        return self.llm.llm_engine

    def _add(self, id_: str, ask: Ask) -> None:
        tokenizer = self.llm.get_tokenizer()
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        request, sampling = ask.request, ask.request.sampling
        prompt = checkpoint.encode(tokenizer, request, self.model)
        checkpoint.check_length(prompt, sampling.max_tokens, self._engine.model_config.max_model_len)
        try:
            params = SamplingParams(
                n=ask.count,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=ask.seed,
                stop=list(sampling.stop),
                stop_token_ids=sorted(checkpoint.special_stops(tokenizer, sampling.stop)),
                logprobs=sampling.logprobs or None,
                structured_outputs=StructuredOutputsParams(json=sampling.json_schema) if sampling.json_schema else None,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            (rendered,) = self._engine.renderer.render_cmpl([{"prompt_token_ids": prompt}])
            self._engine.add_request(id_, rendered, params)
        except (ValueError, VLLMClientError) as error:
            raise Unanswerable(str(error).strip().splitlines()[0]) from error

    def _response(self, ask: Ask, output: Any) -> Response:
        choices = sorted(output.outputs, key=lambda one: one.index)
        return Response(
            choices=tuple(_choice(one, ask.request.sampling.logprobs) for one in choices),
            prompt_tokens=len(output.prompt_token_ids),
            model=self.name,
        )


def _choice(one: Any, count: int) -> Choice:
    logprobs = None
    if one.logprobs is not None:
        logprobs = tuple(_logprob(id_, place, count) for id_, place in zip(one.token_ids, one.logprobs, strict=True))
    return Choice(text=one.text, finish_reason=one.finish_reason, tokens=len(one.token_ids), logprobs=logprobs)


def _logprob(id_: int, place: dict[int, Any], count: int) -> Logprob:
    """vLLM gives the sampled token besides the likeliest, unless it is one of them."""
    chosen = place[id_]
    likeliest = sorted(place.values(), key=lambda known: known.rank)[:count]
    return Logprob(chosen.decoded_token, chosen.logprob, tuple((t.decoded_token, t.logprob) for t in likeliest))
