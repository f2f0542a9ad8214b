"""A stand-in for vLLM's OpenAI server on loopback: refuses what vLLM refuses, samples with the weights it was sent.

Rules taken from vLLM's protocol (CompletionRequest, SamplingParams): unknown models are 404; n > 1 is refused when
decoding greedily; max_tokens must fit the context; development endpoints exist only in development mode.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from understudy.models.generation import SamplingSettings, generate
from understudy.models.language_model import LanguageModel

MODEL = "policy"
KNOWN = {
    *{"model", "prompt", "return_token_ids", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p"},
    *{"repetition_penalty", "seed", "ignore_eos", "stop_token_ids"},
}


class Stub:
    """What the server holds and has seen."""

    def __init__(self, policy: LanguageModel, development: bool) -> None:
        self.policy, self.development = policy, development
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
        if body["method"] != "reload_weights":
            return 400, {"error": {"message": f"no method {body['method']}"}}
        from safetensors.torch import load_file

        weights = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
        self.policy.model.load_state_dict(weights, strict=False)
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
        if self.cache_is_stale:
            problems.append("the prefix cache belongs to older weights")
        if problems:
            return 400, {"error": {"message": "; ".join(problems)}}
        greedy = body["temperature"] == 0
        settings = SamplingSettings(body["max_tokens"], body["temperature"] or 1.0, body["top_p"], greedy)
        generator = torch.Generator().manual_seed(body["seed"])
        rollouts = generate(self.policy, prompts, settings, generator, body["n"])
        rows = zip(rollouts.responses, rollouts.finished, strict=True)
        choices = [
            {"index": i, "text": "", "token_ids": row, "finish_reason": "stop" if done else "length"}
            for i, (row, done) in enumerate(rows)
        ]
        # A server answers in the order in which responses end.
        return 200, {"object": "text_completion", "choices": choices[::-1]}


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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
