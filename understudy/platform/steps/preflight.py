"""Step preflight: every problem at once, on CPU, before anything is computed.

It imports neither MLflow nor, unless a GPU is asked for by name, torch: services are asked whether they answer,
models are looked at as files.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.config import (
    AlignConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PromotionConfig,
    RegistryConfig,
    Section,
    SftConfig,
    disagreements,
    validate,
)
from understudy.errors import ConfigError, DataRefused, ServiceUnreachable, UnderstudyError
from understudy.evaluation.judge_target import find_target, target_places, top_level_names
from understudy.models.architecture import CONTEXT_FIELDS
from understudy.platform import where
from understudy.platform.context import step_context
from understudy.platform.steps.first_rows import first_rows, first_rows_warnings
from understudy.platform.steps.memory_warning import available_here, memory_warning
from understudy.platform.steps.objective_warnings import objective_warnings

MIN_FREE_BYTES = 200 * 2**20
_GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
_SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "sft": SftConfig,
    "align": AlignConfig,
    "evaluation": EvaluationConfig,
    "registry": RegistryConfig,
}


def run(config: Mapping[str, Any]) -> str:
    """Check everything that later steps rely on; return a constant word, so that a pass changes no later key.

    What runs but is not what its name says is a warning: a note in the event log and in the run's output.

    Raises:
        ConfigError: every problem, services included, if any is in the params.
        ServiceUnreachable: nothing but services is wrong.
    """
    with step_context("preflight", config) as context:
        problems, sections = _valid_sections(config)
        problems += config_problems(sections, context.workdir)
        problems += _device_problems(context.device)
        if "gate_yaml" in config:
            judges = [judge.name for judge in sections["evaluation"].judges] if "evaluation" in sections else None
            problems += _promotion_problems(config, judges)
        unreachable = service_problems(where.named_tracking_uri(), where.storage_uri(), context.workdir)
        raise_for(problems, unreachable)
        for warning in _warnings(sections, context.device):
            context.note(f"Warning: {warning}.")
        return "ok"


def raise_for(problems: list[str], unreachable: list[str]) -> None:
    """Raise one error that lists all problems, of the class that says what kind they are."""
    found = problems + unreachable
    if not found:
        return
    count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
    message = f"Preflight found {count}; nothing was started:\n" + "\n".join(f"  - {problem}" for problem in found)
    raise (ConfigError if problems else ServiceUnreachable)(message)


def _device_problems(device: str) -> Iterator[str]:
    # On a cluster this runs without a GPU before steps that have one; what always holds is not worth torch's seconds.
    if "UNDERSTUDY_RUNNER_PID" not in os.environ or device in ("auto", "cpu"):
        return
    from understudy.models.devices import resolve_device

    try:
        resolve_device(device)
    except ConfigError as error:
        yield str(error)


def _warnings(sections: Mapping[str, Any], device: str) -> Iterator[str]:
    align: AlignConfig = sections["align"]
    yield from objective_warnings(align)
    yield from _memory_warnings(sections, device)
    yield from first_rows_warnings(
        first_rows(sections["data"]), sections["evaluation"], align.rollout.max_response_tokens
    )


def _memory_warnings(sections: Mapping[str, Any], device: str) -> Iterator[str]:
    available_bytes = available_here(device)
    if available_bytes is None:
        return
    warning = memory_warning(sections["data"], sections["model"], sections["align"], available_bytes)
    if warning is not None:
        yield warning


def _valid_sections(config: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    problems: list[str] = []
    sections: dict[str, Any] = {}
    for name, model in _SECTIONS.items():
        try:
            sections[name] = validate(model, config.get(name), name)
        except ConfigError as error:
            problems.append(str(error))
    return problems, sections


def _promotion_problems(config: Mapping[str, Any], judges: Sequence[str] | None) -> list[str]:
    from understudy.platform.steps.promotion_problems import promotion_problems

    try:
        promotion = validate(PromotionConfig, config["promotion"], "promotion")
        return list(promotion_problems(promotion, config["gate_yaml"], judges))
    except ConfigError as error:
        return [str(error)]


def config_problems(sections: Mapping[str, Any], workdir: Path) -> list[str]:
    """Return what is wrong with the params as far as files, names and sizes tell."""
    problems: list[str] = []
    if "data" in sections:
        problems += _source_problems(sections["data"])
    if "model" in sections:
        problems += _model_problems(sections["model"])
    if "evaluation" in sections:
        problems += _judge_problems(sections["evaluation"])
    if "align" in sections:
        problems += _divergence_problems(sections["align"])
    if {"model", "align", "evaluation"} <= set(sections):
        problems += _length_problems(sections["model"], sections["align"], sections["evaluation"])
    if {"data", "model", "sft", "align"} <= set(sections):
        problems += disagreements(*(sections[name] for name in ("data", "model", "sft", "align")))
    free = shutil.disk_usage(workdir).free
    if free < MIN_FREE_BYTES:
        problems.append(
            f"{str(workdir)!r} has {free / 1e6:.0f} MB free, a run needs at least {MIN_FREE_BYTES / 1e6:.0f} MB; "
            "free some space, or name a working directory on another disk with --workdir DIR"
        )
    return problems


def service_problems(tracking_uri: str | None, storage_uri: str | None, workdir: Path) -> list[str]:
    """Return which services do not answer within a few seconds; local folders and files always do."""
    from understudy.platform.storage import open_store
    from understudy.platform.tracking import check_reachable

    problems = []
    try:
        check_reachable(tracking_uri or "")
    except UnderstudyError as error:
        problems.append(str(error))
    try:
        open_store(storage_uri or None, workdir).check()
    except UnderstudyError as error:
        problems.append(str(error))
    return problems


def _source_problems(data: DataConfig) -> Iterator[str]:
    from understudy.platform.steps.ingest import list_any

    try:
        list_any(data.source)
    except (ConfigError, DataRefused, ServiceUnreachable) as error:
        yield str(error)


def _model_problems(model: ModelConfig) -> Iterator[str]:
    if model.init != "pretrained" or model.path is None:
        shape = model.scratch
        if shape is not None and shape.hidden_size % shape.num_heads:
            yield (
                f"model.scratch: hidden_size {shape.hidden_size} is not a multiple of num_heads {shape.num_heads}; "
                "choose one that is"
            )
        if shape is not None and shape.num_heads % shape.num_kv_heads:
            yield (
                f"model.scratch: num_heads {shape.num_heads} is not a multiple of num_kv_heads "
                f"{shape.num_kv_heads}; choose one that is"
            )
        return
    folder = Path(model.path)
    looks_local = folder.is_absolute() or model.path.startswith((".", "~")) or model.path.count("/") > 1
    if looks_local and not folder.is_dir():
        yield f"model.path {model.path!r} does not exist; name a folder with a model, or a model on the hub"
    elif folder.is_dir() and model.gguf_file and not (folder / model.gguf_file).is_file():
        yield f"model.gguf_file {model.gguf_file!r} is not in {model.path!r}; it holds {_names(folder)}"
    elif folder.is_dir() and not model.gguf_file and not (folder / "config.json").is_file():
        yield f"model.path {model.path!r} has no config.json, so it is no model folder; it holds {_names(folder)}"
    elif folder.is_dir() and not model.gguf_file and _lacks_eos(folder):
        yield (
            f"the tokenizer in {model.path!r} has no EOS token, so the end of a response could not be learned; set "
            "eos_token in its tokenizer_config.json to the token that ends a turn"
        )
    elif not folder.is_dir() and os.environ.get("HF_HUB_OFFLINE") == "1" and not _in_hub_cache(model.path):
        yield (
            f"model.path {model.path!r} is neither a folder nor in the hub's cache, and HF_HUB_OFFLINE=1 forbids "
            "fetching it; name a folder, or unset HF_HUB_OFFLINE"
        )


def _lacks_eos(folder: Path) -> bool:
    """Say whether a tokenizer without a class of its own, which would have a default, names no EOS token."""
    named: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            named |= json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):  # absent or odd: loading it will tell
            continue
    return named.get("tokenizer_class") in _GENERIC_TOKENIZERS and not named.get("eos_token")


def _names(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") if names else "nothing"


def _in_hub_cache(name: str) -> bool:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return (cache / f"models--{name.replace('/', '--')}").is_dir()


def _judge_problems(evaluation: EvaluationConfig) -> Iterator[str]:
    for judge in evaluation.judges:
        target = judge.target or ""
        if judge.kind == "reward_model":
            folder = find_target(target)
            if folder is None or not folder.is_dir():
                yield f"judge {judge.name!r}: {target!r} is not a folder with a reward model"
        if judge.chat is not None and judge.chat.api_key_env and not os.environ.get(judge.chat.api_key_env):
            yield f"judge {judge.name!r}: the variable {judge.chat.api_key_env} that is to hold its key is not set"
        if judge.kind != "callable":
            continue
        name, _, function = target.rpartition(":")
        if not name or not function:
            yield f"judge {judge.name!r}: target {target!r} is not of the form file.py:function or module:function"
        elif name.endswith(".py"):
            yield from _file_problems(judge.name, name, function)
        elif not _module_exists(name):
            yield f"judge {judge.name!r}: module {name!r} cannot be found; is it installed?"


def _file_problems(judge: str, name: str, function: str) -> Iterator[str]:
    path = find_target(name)
    if path is None or not path.is_file():
        tried = " and ".join(map(str, target_places(name)))
        yield f"judge {judge!r}: file {name!r} does not exist (tried {tried})"
        return
    try:
        names = top_level_names(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        yield f"judge {judge!r}: {name!r} is not Python: {error}"
        return
    if not names & {function, "*"}:
        there = ", ".join(sorted(names)) or "nothing"
        yield f"judge {judge!r}: {name!r} has no function {function!r}; it names {there}"


def _module_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _divergence_problems(align: AlignConfig) -> Iterator[str]:
    # The table of names lives with the maths, which imports torch: ask it only about a name that is not common.
    if align.divergence in ("reverse_kl", "js", "forward_kl"):
        return
    from understudy.objectives import divergence

    try:
        divergence(align.divergence)
    except ValueError as error:
        yield f"align.divergence: {error}"


def _length_problems(model: ModelConfig, align: AlignConfig, evaluation: EvaluationConfig) -> Iterator[str]:
    context_tokens = _context_tokens(model)
    if context_tokens is None:
        return
    wanted = {
        "align.rollout.max_response_tokens": align.rollout.max_response_tokens,
        "evaluation.max_response_tokens": evaluation.max_response_tokens,
    }
    for name, tokens in wanted.items():
        if tokens >= context_tokens:
            yield (
                f"{name} is {tokens}, the model's context holds {context_tokens} tokens, so no prompt would fit; "
                f"lower it or give the model a longer context"
            )


def _context_tokens(model: ModelConfig) -> int | None:
    if model.init == "scratch":
        return model.scratch.context_tokens if model.scratch else None
    path = Path(model.path or "") / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    text = config.get("text_config") or config
    limits = [text[name] for name in CONTEXT_FIELDS if text.get(name)]
    return min(map(int, limits), default=None)
