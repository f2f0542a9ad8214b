"""Stand-ins for vLLM: its OpenAI server on loopback and its module. Both sample with the weights that they were given.

The server refuses what vLLM refuses. Rules taken from vLLM's protocol (CompletionRequest, SamplingParams): unknown
models are 404; n > 1 is refused when decoding greedily; max_tokens must fit the context; a seed has 64 bits;
development endpoints exist only in development mode.
Workers take the arguments of `Worker.reload_weights` as vLLM has it from 0.16 on. The module loads float32 weights in
half of their precision unless it is told a dtype, as vLLM does.
Seeds are vLLM's (ParentRequest): response j to a prompt is drawn by seed + j, whatever else is in the batch.
"""

from __future__ import annotations

import json
import random
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from understudy.models.decoding import start
from understudy.models.language_model import LanguageModel

MODEL = "policy"
KNOWN = {
    *{"model", "prompt", "return_token_ids", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p"},
    *{"repetition_penalty", "seed", "ignore_eos", "stop_token_ids"},
}


@torch.no_grad()
def sample(policy: LanguageModel, prompt: Sequence[int], asked: Mapping[str, Any]) -> list[list[int]]:
    """The n responses to one prompt, each up to its end token, by sampling arguments named as in vLLM."""
    chances = [_chances(asked["seed"] + child, asked["max_tokens"]) for child in range(asked["n"])]
    chance_BT = torch.tensor(chances, dtype=torch.float64)
    stepper = start(policy, [prompt], asked["n"], asked["max_tokens"])
    token_BT = torch.empty(asked["n"], asked["max_tokens"], dtype=torch.long)
    for column in range(asked["max_tokens"]):
        if column:
            stepper.step(token_BT[:, column - 1])
        chance_B1 = chance_BT[:, column : column + 1]
        token_BT[:, column] = _choose(stepper.logits_BV, chance_B1, asked["temperature"], asked["top_p"])
    end = policy.end_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in token_BT.tolist()]


def _chances(seed: int, number: int) -> list[float]:
    draw = random.Random(seed)
    return [draw.random() for _ in range(number)]


def _choose(logits_BV: Tensor, chance_B1: Tensor, temperature: float, top_p: float) -> Tensor:
    if temperature == 0:
        return logits_BV.argmax(-1)
    probability_BV, token_BV = (logits_BV.double() / temperature).softmax(-1).sort(descending=True)
    mass_BV = probability_BV.cumsum(-1)
    last_B1 = (mass_BV < top_p).sum(-1, keepdim=True).clamp(max=mass_BV.shape[1] - 1)
    place_B1 = torch.searchsorted(mass_BV, chance_B1 * mass_BV.gather(1, last_B1), right=True)
    return token_BV.gather(1, torch.minimum(place_B1, last_B1)).squeeze(1)


def _load(policy: LanguageModel, folder: str) -> None:
    policy.model.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)


class Worker:
    """What `collective_rpc` calls the methods of."""

    def __init__(self, policy: LanguageModel) -> None:
        self._policy = policy

    def reload_weights(
        self, weights_iterator: Any = None, weights_path: str | None = None, is_checkpoint_format: bool = True
    ) -> None:
        assert weights_iterator is None and is_checkpoint_format and weights_path is not None
        _load(self._policy, weights_path)


class OldWorker(Worker):
    """Before 0.16."""

    def reload_weights(self) -> None:  # type: ignore[override]
        pass


def vllm_module(policy: LanguageModel, calls: list[tuple[str, Any]]) -> types.ModuleType:
    """A stand-in for the module `vllm`, whose LLM samples by the policy's network and notes what it is told."""

    class LLM:
        def __init__(self, model: str, *, dtype: str = "auto", gpu_memory_utilization: float = 0.9) -> None:
            calls.append(("load", dtype))
            _load(policy, model)
            if dtype != "float32":
                policy.model.to(torch.float16 if dtype == "auto" else getattr(torch, dtype)).float()

        def collective_rpc(
            self, method: str, timeout: float | None = None, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> None:
            calls.append((method, kwargs))
            getattr(Worker(policy), method)(*args, **(kwargs or {}))

        def reset_prefix_cache(self) -> None:
            calls.append(("reset", None))

        def generate(self, asked: Any, sampling: Any, use_tqdm: bool) -> Any:
            calls.append(("generate", [vars(own) for own in sampling]))
            return [
                types.SimpleNamespace(
                    outputs=[_choice(row) for row in sample(policy, one["prompt_token_ids"], vars(own))]
                )
                for one, own in zip(asked, sampling, strict=True)
            ]

    def _choice(row: list[int]) -> types.SimpleNamespace:
        # Unlike the server, it keeps the token that stopped a response to itself.
        done = row[-1] == policy.end_token_id
        return types.SimpleNamespace(token_ids=row[: len(row) - done], finish_reason="stop" if done else "length")

    made = types.ModuleType("vllm")
    made.LLM, made.SamplingParams = LLM, types.SimpleNamespace  # type: ignore[attr-defined]
    return made


class Stub:
    """What the server holds and has seen."""

    def __init__(self, policy: LanguageModel, development: bool) -> None:
        self.policy, self.development, self.worker = policy, development, Worker(policy)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.num_reloads = 0
        self.cache_is_stale = False

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.requests.append((path, body))
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        if path in ("/collective_rpc", "/reset_prefix_cache"):
            return self._develop(path, body) if self.development else (404, {"detail": "Not Found"})
        return self._complete(body) if path == "/v1/completions" else (404, {"detail": "Not Found"})

    def _develop(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/reset_prefix_cache":
            self.cache_is_stale = False
            return 200, None
        try:
            getattr(self.worker, body["method"])(*body.get("args", []), **body.get("kwargs", {}))
        except (AttributeError, TypeError) as error:
            return 500, {"error": {"message": str(error)}}
        self.num_reloads, self.cache_is_stale = self.num_reloads + 1, True
        return 200, {"results": [None]}

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        prompts = body["prompt"]
        problems = [f"unknown field {name}" for name in body.keys() - KNOWN]
        if body["model"] != MODEL:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if not (isinstance(prompts, list) and all(p and all(type(t) is int for t in p) for p in prompts)):
            problems.append("prompt must be lists of token ids")
        if body["temperature"] == 0 and body["n"] > 1:
            problems.append(f"n must be 1 when using greedy sampling, got {body['n']}.")
        longest = max(map(len, prompts)) + body["max_tokens"]
        if longest > self.policy.context_tokens:
            problems.append(f"maximum context length is {self.policy.context_tokens} tokens, requested {longest}")
        if not 0 < body["top_p"] <= 1:
            problems.append("top_p must be in (0, 1]")
        if not -(2**63) <= body["seed"] < 2**63:
            problems.append("seed must be an integer of 64 bits")
        if self.cache_is_stale:
            problems.append("the prefix cache belongs to older weights")
        if problems:
            return 400, {"error": {"message": "; ".join(problems)}}
        rows = [row for prompt in prompts for row in sample(self.policy, prompt, body)]
        reasons = ["stop" if row[-1] == self.policy.end_token_id else "length" for row in rows]
        choices = [
            {"index": index, "text": "", "token_ids": row, "finish_reason": reason}
            for index, (row, reason) in enumerate(zip(rows, reasons, strict=True))
        ]
        # A server answers in the order in which responses end.
        return 200, {"object": "text_completion", "choices": choices[::-1]}


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # the default of 5 lets some of a round's simultaneous requests wait a second


@contextmanager
def serve(policy: LanguageModel, development: bool = True) -> Iterator[tuple[str, Stub]]:
    """Serve until the context ends; gives the URL and the stub."""
    stub = Stub(policy, development)

    class Handler(BaseHTTPRequestHandler):
        def _reply(self, body: dict[str, Any]) -> None:
            status, answer = stub.answer(self.path, body)
            data = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

        def log_message(self, *arguments: object) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
