"""Judges of sampled quality: a score per prompt and response, higher is better, NaN when undecided."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from understudy.config import BradleyTerryJudgeConfig, JudgeConfig
from understudy.errors import ConfigError, UnderstudyError
from understudy.evaluation.intervals import Floats
from understudy.evaluation.judge_target import find_target, target_places

JudgeFunction = Callable[[str, str, str], float | None]


class Judge(Protocol):
    """Scores responses; stateless between calls."""

    @property
    def name(self) -> str:
        """The name that reports use."""

    def scores(self, prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> Floats:
        """Return one score per response (P), NaN where the judge cannot decide."""


@runtime_checkable
class Told(Protocol):
    """A judge about which a report has more to say than its scores: what it cost, or how well it learned."""

    def report(self) -> dict[str, Any]:
        """Return that as plain JSON values."""

    def note(self) -> str:
        """Return that as a sentence."""


def told(judges: Sequence[Judge]) -> dict[str, Told]:
    """Return by name the judges that have more to say."""
    return {judge.name: judge for judge in judges if isinstance(judge, Told)}


@dataclass(frozen=True)
class ExactMatch:
    """1 when response and reference are equal after each run of white space becomes one blank, else 0."""

    name: str

    def scores(self, prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> Floats:
        """Return 0 or 1 for each response (P)."""
        pairs = zip(responses, references, strict=True)
        return np.asarray([float(response.split() == reference.split()) for response, reference in pairs])


@dataclass(frozen=True)
class RegexJudge:
    """1 when the pattern is found anywhere in the response, else 0."""

    name: str
    pattern: str

    def scores(self, prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> Floats:
        """Return 0 or 1 for each response (P)."""
        return np.asarray([float(re.search(self.pattern, response) is not None) for response in responses])


@dataclass(frozen=True)
class CallableJudge:
    """A Python function `judge(prompt, response, reference) -> score`; NaN or None means undecided."""

    name: str
    function: JudgeFunction

    def scores(self, prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> Floats:
        """Return the function's score for each response (P).

        Raises:
            UnderstudyError: the function raised or returned something else than a number.
        """
        rows = enumerate(zip(prompts, responses, references, strict=True))
        return np.asarray([self._score(index, *row) for index, row in rows], dtype=np.float64)

    def _score(self, index: int, prompt: str, response: str, reference: str) -> float:
        try:
            answer = self.function(prompt, response, reference)
            score = math.nan if answer is None else float(answer)
        except Exception as error:
            raise UnderstudyError(
                f"Judge {self.name!r} failed on prompt {index} ({prompt[:60]!r}): {type(error).__name__}: {error}. "
                "A judge returns a number, or None when it cannot decide; correct it and run again."
            ) from error
        if math.isinf(score):
            raise UnderstudyError(
                f"Judge {self.name!r} returned {score} for prompt {index} ({prompt[:60]!r}). "
                "Scores are averaged, so they must be finite, or None for undecided."
            )
        return score


class RewardModelJudge:
    """A Hugging Face sequence classifier folder; the score is its single logit, or the last class's log-odds.

    Loaded at the first use. The text is the chat template's when the tokenizer has one, else prompt and response
    as a pair.
    """

    def __init__(self, name: str, folder: str, batch_size: int = 16) -> None:
        self.name = name
        self.folder = folder
        self.batch_size = batch_size
        self._loaded: tuple[Any, Any] | None = None

    def scores(self, prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> Floats:
        """Return one score per response (P)."""
        import torch

        tokenizer, model = self._load()
        scores: list[float] = []
        for start in range(0, len(prompts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            encoded = _encode(tokenizer, prompts[rows], responses[rows]).to(model.device)
            with torch.inference_mode():
                logits_BC = model(**encoded).logits.double()
            score_B = logits_BC[:, 0] if logits_BC.shape[1] == 1 else _log_odds(logits_BC)
            scores += score_B.tolist()
        return np.asarray(scores)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            from understudy.models.devices import resolve_device

            try:
                own = {"trust_remote_code": False}  # left open, transformers asks whoever sits at the terminal
                tokenizer: Any = AutoTokenizer.from_pretrained(self.folder, **own)
                loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                    self.folder, use_safetensors=True, output_loading_info=True, **own
                )
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"Judge {self.name!r}: {self.folder!r} cannot be loaded as a sequence classifier: {error} "
                    "Name a folder with config.json, a tokenizer and model.safetensors (pickled weights are refused)."
                ) from error
            model, told = loaded
            if missing := sorted(told["missing_keys"]):
                raise ConfigError(
                    f"Judge {self.name!r}: {self.folder!r} has no weights for {', '.join(missing)}; its scores would "
                    "be those of a random head. Name a folder that was trained as a sequence classifier, or use "
                    "a judge of kind bradley_terry, which trains a head on the policy."
                )
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            if model.config.pad_token_id is None:
                model.config.pad_token_id = tokenizer.pad_token_id
            model.to(resolve_device("auto")).eval()
            self._loaded = tokenizer, model
        return self._loaded


def load_judge(config: JudgeConfig, root: Path | None = None, cache: Path | None = None) -> Judge:
    """Return the judge that the params name.

    Args:
        config: one entry of `evaluation.judges`.
        root: folder that relative targets start from; the current one by default, then the one above the package.
        cache: folder for verdicts that cost something to get again.

    Raises:
        ConfigError: the target does not exist, with what was looked for.
    """
    if config.kind == "exact_match":
        return ExactMatch(config.name)
    if config.kind == "bradley_terry":
        from understudy.evaluation.judges_bradley_terry import BradleyTerryJudge

        return BradleyTerryJudge(config.name, config.bradley_terry or BradleyTerryJudgeConfig())
    assert config.target is not None  # JudgeConfig refuses it
    if config.kind == "regex":
        return RegexJudge(config.name, config.target)
    if config.kind == "chat":
        from understudy.evaluation.judges_chat import ChatJudge

        assert config.chat is not None  # JudgeConfig refuses it
        return ChatJudge(config.name, config.target, config.chat, cache)
    if config.kind == "reward_model":
        return RewardModelJudge(config.name, str(_existing(config, config.target, root)))
    return CallableJudge(config.name, _function(config, config.target, root))


def _function(config: JudgeConfig, target: str, root: Path | None) -> JudgeFunction:
    place, separator, function_name = target.rpartition(":")
    if not separator or not place or not function_name.isidentifier():
        raise ConfigError(
            f"Judge {config.name!r}: target {target!r} is neither 'file.py:function' nor 'package.module:function'."
        )
    module = _module_from_file(config, place, root) if place.endswith(".py") else _module_by_name(config, place)
    function = getattr(module, function_name, None)
    if not callable(function):
        names = sorted(name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
        raise ConfigError(
            f"Judge {config.name!r}: {place} has no function {function_name!r}; it has {', '.join(names) or 'none'}. "
            "Correct evaluation.judges in the params."
        )
    return function  # type: ignore[no-any-return]


def _module_from_file(config: JudgeConfig, place: str, root: Path | None) -> Any:
    path = _existing(config, place, root).resolve()
    spec = importlib.util.spec_from_file_location(f"understudy_judge_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    sys.path.insert(0, str(path.parent))  # a judge may import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"Judge {config.name!r}: importing {path} failed: {type(error).__name__}: {error}. Correct that file."
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _module_by_name(config: JudgeConfig, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ConfigError(
            f"Judge {config.name!r}: importing module {name!r} failed: {type(error).__name__}: {error}. "
            "Install it, or name a file as 'path/file.py:function'."
        ) from error


def _existing(config: JudgeConfig, place: str, root: Path | None) -> Path:
    if found := find_target(place, root):
        return found
    tried = " and ".join(map(str, target_places(place, root)))
    raise ConfigError(
        f"Judge {config.name!r}: target {config.target!r} does not exist (tried {tried}). "
        "Correct evaluation.judges in the params; a relative path starts in the folder where the run starts."
    )


def _encode(tokenizer: Any, prompts: Sequence[str], responses: Sequence[str]) -> Any:
    from understudy.models.text_encoder import TextEncoder

    limit = 2048 if tokenizer.model_max_length > 10**9 else tokenizer.model_max_length
    if not tokenizer.chat_template:
        arguments = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": limit}
        # A response that names the separator must not begin a part of its own.
        return tokenizer(list(prompts), list(responses), split_special_tokens=True, **arguments)
    encoder = TextEncoder(tokenizer)
    turns = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    kept = slice(limit) if tokenizer.truncation_side == "right" else slice(-limit, None)
    ids = [encoder.chat(conversation, add_generation_prompt=False)[kept] for conversation in turns]
    return tokenizer.pad({"input_ids": ids}, return_tensors="pt")


def _log_odds(logits_BC: Any) -> Any:
    """Return log p(last class) - log p(any other class)."""
    return logits_BC[:, -1] - logits_BC[:, :-1].logsumexp(-1)
