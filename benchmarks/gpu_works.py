"""What a GPU benchmark works on: the shape of SmolLM2-135M, on a CPU a tiny one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from benchmarks.aligning import Work
from benchmarks.device import DEVICE, ON_GPU, WIDTH
from benchmarks.subjects import create_model, word_tokenizer
from understudy.models.language_model import LanguageModel
from understudy.training.memory import ModelShape

SIZE = "SmolLM2-135M" if ON_GPU else "0.1M"
# A GPU waits for launches in small micro-batches, and TRL takes all rows at once, too.
WORK = Work(SIZE, 16, 8, 128, 256, 49_152).in_one_pass() if ON_GPU else Work(SIZE, 1, 2, 4, 6, 64)
MICRO_BATCHES = (8192, 16384, WORK.read_tokens) if ON_GPU else (20,)
ROWS = (128, 512) if ON_GPU else (2,)
Found = dict[str, Any]
Keep = Callable[[Found], None]


@cache
def model() -> Any:
    """The model of all parts."""
    return create_model(SIZE, WORK.vocabulary, max(128, WORK.prompt_tokens + WORK.response_tokens + 8))


def policy(ends_inside: bool = False) -> LanguageModel:
    """A copy of it on the device as a policy, which can sample the end where that lies inside the vocabulary."""
    made = LanguageModel(copy.deepcopy(model()).to(DEVICE), word_tokenizer(WORK.vocabulary, ends_inside))
    made.pad_token_id = 0
    return made


def least_decode_seconds(precision: str, rows: int, floor: Mapping[str, float]) -> float:
    """Of a token of each row: weights, and keys and values of the columns that are there, are read once for all."""
    shape = ModelShape.of(model())
    columns = WORK.prompt_tokens + WORK.response_tokens / 2
    moved = WIDTH[precision] * (shape.parameters + 2 * shape.layers * rows * columns * shape.key_width)
    return moved / floor["bytes_per_second"]


def one_line(error: Exception) -> str:
    """Its type and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
