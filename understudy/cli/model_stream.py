"""A registered model that answers prompts, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from understudy.errors import UnencodableText

if TYPE_CHECKING:
    import torch

    from understudy.platform.registry import Registry, Version


class Answerer:
    """One version, loaded.

    Args:
        registry: where it is registered.
        version: which one.
        max_new_tokens: limit of an answer; None: the version's own.
        temperature: 0 is greedy; None: the version's own.
    """

    def __init__(
        self, registry: Registry, version: Version, max_new_tokens: int | None, temperature: float | None
    ) -> None:
        from understudy.models.generation import SamplingSettings
        from understudy.models.loading import load_policy
        from understudy.platform.registry import generation_defaults
        from understudy.platform.workdir import scratch_folder

        self.name = f"{version.name}/{version.version}"
        _silence_loading()
        with scratch_folder(registry.workdir) as scratch:
            folder = registry.download(version, scratch)
            defaults = generation_defaults(folder)
            self.policy = load_policy(folder)
        chosen = defaults["temperature"] if temperature is None else temperature
        self.settings = SamplingSettings(
            max_response_tokens=max_new_tokens or defaults["max_new_tokens"],
            temperature=chosen or 1.0,
            greedy=chosen == 0,
        )

    def answer(self, prompt: str, seed: int, write: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Return response, finished, tokens and seed; `write` gets the text piece by piece as it is written.

        Raises:
            UnencodableText: the model cannot be given this prompt, with the reason.
        """
        import torch

        from understudy.models.generation import generate

        ids: list[int] = []
        shown = ""

        def on_token(tokens: torch.Tensor) -> None:
            nonlocal shown
            ids.append(int(tokens[0]))
            text = self.policy.decode(ids)
            # The last character may be half of one until the next token comes.
            if write is not None and not text.endswith("\ufffd") and text.startswith(shown):
                write(text[len(shown) :])
                shown = text

        try:
            prompt_ids = self.policy.encode_prompt([{"role": "user", "content": prompt}])
        except UnencodableText as error:
            raise UnencodableText(f"{self.name} cannot be given this prompt: {error}. Word it differently.") from error
        generator = torch.Generator().manual_seed(seed)
        rollouts = generate(self.policy, [prompt_ids], self.settings, generator, on_token=on_token if write else None)
        response = self.policy.decode(rollouts.responses[0])
        if write is not None:
            write(response[len(shown) :])
        return {"response": response, "finished": rollouts.finished[0], "tokens": rollouts.num_tokens, "seed": seed}


def _silence_loading() -> None:
    """Keep transformers' progress bars, and its word on a prompt that is too long, out of what a person reads."""
    from transformers.utils import logging

    untyped: Any = logging
    untyped.disable_progress_bar()
    untyped.set_verbosity_error()  # of that prompt our own error says what to do
