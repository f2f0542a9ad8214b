"""Sampling by vLLM, in this process or by a server; the weights go there after each update.

Weights are read from a folder by `reload_weights(weights_path=…)`, which vLLM's workers have from 0.16 on; before, the
method took no argument and read what was loaded first. Not run against a real vLLM yet: the client is tested against a
stub that enforces the rules of its OpenAI server and of its workers.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from understudy.errors import ConfigError, ServiceUnreachable
from understudy.models.engines import as_rollouts, draw_seed, refuse_several, until_end
from understudy.models.generation import Peers, Rollouts, SamplingSettings, response_limits
from understudy.models.language_model import LanguageModel

_TIMEOUT_SECONDS = 600.0
_REQUESTS = 256  # at a time: each is one prompt, and a server decodes hundreds of sequences together
_SEEDS = 2**62  # of 64 bits with a sign; among the 2**31 that others draw from, the rounds of a long run would meet


class _Synchronised:
    """Writes the policy's weights where vLLM reads them, once for each state of the weights."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="understudy-vllm-")
        self._sent: tuple[int, ...] | None = None

    @contextlib.contextmanager
    def _changed(self, policy: LanguageModel) -> Iterator[Path | None]:
        """The folder with the weights, or None where vLLM has them already; it has them if the block ends well."""
        # Every update in place raises the version of a tensor.
        now = tuple(parameter._version for parameter in policy.model.parameters())
        if now == self._sent:
            yield None
            return
        # Whatever is sampled after a failure must not come from weights that were read in part, or not at all.
        self._sent = None
        folder = Path(self._folder.name) / "policy"
        policy.save(folder)
        yield folder
        self._sent = now


def sampling_arguments(
    policy: LanguageModel, limit: int, settings: SamplingSettings, seed: int, responses_per_prompt: int
) -> dict[str, Any]:
    """What vLLM must know to sample from the policy's distribution, and from nothing narrower.

    A server else takes top_k and penalties from the model's own generation settings. vLLM refuses several responses
    to a prompt when it decodes greedily.
    """
    return {
        "n": 1 if settings.greedy else responses_per_prompt,
        "max_tokens": limit,
        "temperature": 0.0 if settings.greedy else settings.temperature,
        "top_p": 1.0 if settings.greedy else settings.top_p,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": seed,
        # The end of a response, which need not be the tokenizer's end of text.
        "ignore_eos": True,
        "stop_token_ids": [policy.end_token_id],
    }


def prompt_seeds(generator: torch.Generator, num_prompts: int, responses_per_prompt: int) -> list[int]:
    """A seed for each prompt of a round, so far apart that no two of its responses are drawn by the same numbers.

    vLLM draws response j to a prompt by the prompt's seed + j.
    """
    first = draw_seed(generator, _SEEDS)
    return [first + index * responses_per_prompt for index in range(num_prompts)]


class VllmServer(_Synchronised):
    """A vLLM server, started with VLLM_SERVER_DEV_MODE=1 and a disk that it shares with this process.

    It samples in the precision that it was started with (--dtype), which is half of float32's unless told.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url.rstrip("/")
        self._model: str | None = None

    def generate(
        self,
        policy: LanguageModel,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        generator: torch.Generator,
        responses_per_prompt: int = 1,
        peers: Peers | None = None,
    ) -> Rollouts:
        """Send the weights if they changed, and sample by token ids.

        Raises:
            ServiceUnreachable: the server does not answer, or refuses; with what it said.
        """
        refuse_several(peers, "vllm")
        if self._model is None:
            self._model = str(self._call("/v1/models")["data"][0]["id"])
        with self._changed(policy) as folder:
            if folder is not None:
                self._call("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
                # What was computed with the old weights must not answer for the new ones.
                self._call("/reset_prefix_cache", {})
        limits = response_limits(policy, prompts, settings.max_response_tokens)
        seeds = prompt_seeds(generator, len(prompts), responses_per_prompt)

        def ask(prompt: Sequence[int], limit: int, seed: int) -> list[list[int]]:
            return self._complete(
                policy, prompt, sampling_arguments(policy, limit, settings, seed, responses_per_prompt)
            )

        # A request has one seed for all its prompts, so each prompt has its own; the server decodes them together.
        with ThreadPoolExecutor(_REQUESTS) as pool:
            rows = [row for answer in pool.map(ask, prompts, limits, seeds) for row in answer]
        return as_rollouts(policy, prompts, rows, responses_per_prompt)

    def _complete(self, policy: LanguageModel, prompt: Sequence[int], arguments: dict[str, Any]) -> list[list[int]]:
        """The responses to a prompt, in their order."""
        answer = self._call(
            "/v1/completions", {"model": self._model, "prompt": [list(prompt)], "return_token_ids": True, **arguments}
        )
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if len(choices) != arguments["n"] or any(choice.get("token_ids") is None for choice in choices):
            raise ServiceUnreachable(
                f"{self._url} gave {len(choices)} responses with token ids to a prompt, of {arguments['n']} asked for. "
                "Use vLLM 0.16 or newer."
            )
        return [_row(choice, policy) for choice in choices]

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise ServiceUnreachable(
                f"{self._url}{path} refused with status {error.code}: {said}. Check that it is vLLM 0.16 or newer, "
                "serves this model, and was started with VLLM_SERVER_DEV_MODE=1 so that weights can be sent."
            ) from error
        except OSError as error:
            raise ServiceUnreachable(
                f"{self._url} (align.rollout.server_url) does not answer: {error}. Start vLLM there, or set the URL."
            ) from error
        return json.loads(text) if text.strip() else {}


class VllmColocated(_Synchronised):
    """vLLM in this process, on the same device, in the precision of the policy or of autocast where that is on."""

    def __init__(self) -> None:
        try:
            vllm = importlib.import_module("vllm")
        except ImportError as error:
            raise ConfigError(
                "align.rollout.engine is 'vllm' without align.rollout.server_url, but vLLM is not installed here. "
                "Install understudy[vllm], name a server, or use align.rollout.engine=native."
            ) from error
        super().__init__()
        self._vllm: Any = vllm
        self._llm: Any = None

    def generate(
        self,
        policy: LanguageModel,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        generator: torch.Generator,
        responses_per_prompt: int = 1,
        peers: Peers | None = None,
    ) -> Rollouts:
        """Load or reload the weights if they changed, and sample by token ids."""
        refuse_several(peers, "vllm")
        with self._changed(policy) as folder:
            if self._llm is None:
                self._llm = self._load(policy, folder)
            elif folder is not None:
                self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
                self._llm.reset_prefix_cache()
        limits = response_limits(policy, prompts, settings.max_response_tokens)
        seeds = prompt_seeds(generator, len(prompts), responses_per_prompt)
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        sampling = [
            self._vllm.SamplingParams(**sampling_arguments(policy, limit, settings, seed, responses_per_prompt))
            for limit, seed in zip(limits, seeds, strict=True)
        ]
        outputs = self._llm.generate(asked, sampling, use_tqdm=False)
        choices = [
            {"token_ids": list(choice.token_ids), "finish_reason": choice.finish_reason}
            for output in outputs
            for choice in output.outputs
        ]
        return as_rollouts(policy, prompts, [_row(choice, policy) for choice in choices], responses_per_prompt)

    def _load(self, policy: LanguageModel, folder: Path | None) -> Any:
        kind = policy.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else policy.model.dtype
        # Left to itself, vLLM halves the precision of float32 weights. Half of the device stays for training.
        named = {"dtype": str(dtype).removeprefix("torch."), "gpu_memory_utilization": 0.45}
        return self._vllm.LLM(model=str(folder), **named)


def _row(choice: dict[str, Any], policy: LanguageModel) -> list[int]:
    row = until_end([int(token) for token in choice["token_ids"]], policy.end_token_id)
    # Whether the token that stopped it is among the ids depends on the version.
    if choice.get("finish_reason") == "stop" and row[-1:] != [policy.end_token_id]:
        row.append(policy.end_token_id)
    return row
