"""The tasks: where demonstrations come from, what judges them, and the params that fit their size.

All demonstrations are split by group once; a seed draws which training rows it gets, and all seeds meet the same
validation and test rows.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.config import SplitsConfig
from understudy.data.demonstrations import Demonstration
from understudy.data.splits import split_of

_ARITHMETIC_ROWS = 6000
_TINY = (
    "model.scratch={vocab_size: 261, hidden_size: 32, intermediate_size: 88, num_layers: 2, num_heads: 2, "
    "num_kv_heads: 2, context_tokens: 32}",
    "sft.epochs=40",
    "sft.learning_rate=1e-2",
    "sft.batch_tokens=512",
    "align.num_rounds=60",
    "align.rollout={prompts_per_round: 16, responses_per_prompt: 4, max_response_tokens: 8, temperature: 1.0, "
    "top_p: 1.0}",
    "align.discriminator.warmup_rounds=10",
    "align.discriminator.warmup_updates_per_round=12",
    "align.discriminator.learning_rate=2e-3",
    "align.discriminator.batch_pairs=32",
    "align.learning_rate=5e-4",
    "align.selfplay.batch_pairs=32",
    "evaluation.max_prompts=200",
    "evaluation.max_response_tokens=8",
    "evaluation.temperatures=[0.05, 0.3, 0.6]",
    'evaluation.judges=[{name: right, kind: callable, target: "examples/arithmetic/judge.py:judge"}]',
    "evaluation.tuning_judge=right",
)
# SFT's rates, of all weights here, of adapters below, were tried on validation prompts of seed 100 (docs/lab-notes.md,
# 2026-11-29), those of alignment and of a trained trunk not yet.
_PRETRAINED = (
    "model.init=pretrained",
    "model.precision=bf16",
    "sft.epochs=3",
    "sft.batch_tokens=4096",
    "sft.learning_rate=3e-4",
    "align.num_rounds=40",
    "align.discriminator.learning_rate=2e-5",
    "align.micro_batch_tokens=24576",
    # A cell's checkpoints are thrown away, and of these weights they are gigabytes.
    "sft.checkpoint_every_steps=1000000",
    "align.checkpoint_every_rounds=1000000",
    "align.discriminator.warmup_rounds=8",
    "evaluation.max_prompts=400",
    "evaluation.temperatures=[0.1, 0.3, 0.5, 0.7]",
)
_ADAPTERS = ("model.lora={rank: 16, alpha: 32, dropout: 0.05, target_modules: all-linear}", "sft.learning_rate=1e-3")
_WEIGHTS, _GGUF = "model.path=", "model.gguf_file="


# Of what is fetched. Without its schema the judge decides nothing, and says nothing of it.
_ANSIBLE_FILES = ("raw/demonstrations.jsonl", "raw/ansible_schema.json")
_EVERY_FILES = tuple(f"every/{file}" for file in _ANSIBLE_FILES)
_DEBIAN_FILE = "debian/demonstrations.jsonl"
# The first decides. It tests form: a call of another module than the expert's counts, which the others tell.
_ANSIBLE_JUDGES = "evaluation.judges=[{}]".format(
    ", ".join(
        f'{{name: {name}, kind: callable, target: "examples/ansible/validity.py:{function}"}}'
        for name, function in (("validity", "judge"), ("module", "judge_module"), ("collection", "judge_collection"))
    )
)


@dataclass(frozen=True)
class Task:
    """One source of demonstrations.

    Attributes:
        name: of its cells.
        open_ended: whether many different responses are right.
        overrides: over params.yaml, for a policy from scratch.
        rows: reads the demonstrations, given a folder for what is fetched.
        judge: what the tables call the deciding judge.
        by_character: n-grams are of characters, because a response is one word.
        files: what `rows` and the judge read, below the folder for what is fetched; none where rows are generated.
    """

    name: str
    open_ended: bool
    overrides: tuple[str, ...]
    rows: Callable[[Path], list[dict[str, Any]]]
    judge: str
    by_character: bool = False
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """What one cell sees."""

    train: list[Demonstration]
    validation: list[Demonstration]
    test: list[Demonstration]


def load(task: Task, size: int | None, seed: int, folder: Path, num_test: int, splits: SplitsConfig) -> Rows:
    """Split by group; draw `size` training rows by the seed, and the same held-out rows for every seed."""
    by_split: dict[str, list[Demonstration]] = {"train": [], "validation": [], "test": []}
    for row in sorted(task.rows(folder), key=lambda row: str(row["id"])):
        by_split[split_of(row["group"], splits)].append(_demonstration(row))
    train = _drawn(by_split["train"], size, seed)
    return Rows(train, _drawn(by_split["validation"], num_test // 2, 0), _drawn(by_split["test"], num_test, 0))


def pretrained_overrides(folder: Path, lora: bool) -> tuple[str, ...]:
    """Params for a folder of weights instead of a policy from scratch; an arm's stand over them."""
    gguf = sorted(folder.glob("*.gguf"))
    named = () if (folder / "config.json").is_file() or not gguf else (f"{_GGUF}{gguf[0].name}",)
    return (*_PRETRAINED, f"{_WEIGHTS}{folder}", *named, *(_ADAPTERS if lora else ()))


def without_place(setting: str) -> str:
    """The setting; a folder of weights by its name alone, for they are the same wherever they lie."""
    if not setting.startswith(_WEIGHTS):
        return setting
    return _WEIGHTS + Path(setting.removeprefix(_WEIGHTS)).resolve().name


def in_words(settings: str) -> str:
    """The settings that keep cells apart; the many that a pretrained policy's cells share are told by its name."""
    start, adapters = ", ".join((*_PRETRAINED, _WEIGHTS)), ", ".join(("", *_ADAPTERS))
    if not settings.startswith(start):
        return settings
    kind = "adapters" if adapters in settings else "all weights"
    parts = settings.removeprefix(start).replace(adapters, "").split(", ")
    name, *more = (part for part in parts if not part.startswith(_GGUF))
    return f"pretrained {name}, {kind}{'; ' if more else ''}{', '.join(more)}"


def _arithmetic(kind: str) -> Callable[[Path], list[dict[str, Any]]]:
    def rows(_: Path) -> list[dict[str, Any]]:
        from examples.arithmetic.generate import generate

        return generate(kind, _ARITHMETIC_ROWS)

    return rows


def _ansible(files: tuple[str, ...], every_collection: bool) -> Callable[[Path], list[dict[str, Any]]]:
    """Rows of the collections that the example takes, or of every one."""

    def rows(folder: Path) -> list[dict[str, Any]]:
        from examples.ansible import extract

        paths = [folder / file for file in files]
        raw = paths[0].parent
        os.environ["UNDERSTUDY_WORKDIR"] = str(raw.parent)  # the judge reads its schema in raw/ there
        if not all(path.is_file() for path in paths):
            collections = None if every_collection else extract.COLLECTIONS
            extract.write(raw, folder, collections, extract.MAX_CHARS, None)
        return _read(paths[0])

    return rows


def _debian(folder: Path) -> list[dict[str, Any]]:
    path = folder / _DEBIAN_FILE
    if not path.is_file():
        from examples.debian import extract

        extract.write(path.parent, None, max_chars=400)
    return _read(path)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _demonstration(row: dict[str, Any]) -> Demonstration:
    messages = ({"role": "user", "content": row["prompt"]},)
    return Demonstration(row["id"], row["group"], messages, row["prompt"], row["response"])


def _drawn(rows: Sequence[Demonstration], size: int | None, seed: int) -> list[Demonstration]:
    order = list(rows)
    random.Random(seed).shuffle(order)
    return order[:size]


_PROSE = (
    "model.scratch.vocab_size=2048",
    'evaluation.judges=[{name: similarity, kind: callable, target: "examples/debian/similarity.py:judge"}]',
    "evaluation.tuning_judge=similarity",
)
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sort", False, _TINY, _arithmetic("sort"), "right", by_character=True),
        Task("pick", True, _TINY, _arithmetic("pick"), "right", by_character=True),
        Task("ansible", False, (), _ansible(_ANSIBLE_FILES, every_collection=False), "valid", files=_ANSIBLE_FILES),
        # Every demonstration: 13,800 training rows of 89 collections; the task above has 2,050 of three.
        Task(
            "ansible_all",
            False,
            ("evaluation.max_prompts=300", "evaluation.temperatures=[0.1, 0.3, 0.5, 0.7]", _ANSIBLE_JUDGES),
            _ansible(_EVERY_FILES, every_collection=True),
            "valid",
            files=_EVERY_FILES,
        ),
        Task("debian", True, _PROSE, _debian, "chrF to the expert", files=(_DEBIAN_FILE,)),
    )
}
