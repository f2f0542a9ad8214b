"""SFT: ours against TRL's SFTTrainer with packing, on the same demonstrations of mixed lengths, one epoch.

TRL packs in two ways: whole demonstrations end to end in one long row without padding, which on a CPU is attention over
the whole row with a mask, or cut into rows of equal length. The faster counts, also where TRL is given what our loop
asks of the C library: to keep memory that is freed.
"""

from __future__ import annotations

import contextlib
import io
import random
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.aligning import Surroundings
from benchmarks.subjects import as_text, create_model, create_policy, num_parameters, random_ids, word_tokenizer
from benchmarks.timing import Contender, Turn, compared, median, take_turns, usage
from understudy.config import load_params
from understudy.training.examples import Example

ROOT = Path(__file__).parents[1]
BATCH_TOKENS, PACKED_TOKENS, VOCABULARY = 2048, 256, 2048
WARM_UP_ROWS = 24  # a batch
PACKINGS = {"whole": "bfd", "cut": "wrapped"}  # our words for TRL's strategies
MEMORY = {"": False, " with freed memory kept": True}


def demonstrations(rows: int) -> list[Example]:
    """Prompts of 16 to 48 tokens, responses of 16 to 112; the end token is a word of the vocabulary."""
    chance, made = random.Random(0), []
    for index, ids in enumerate(random_ids(rows, 160, VOCABULARY - 2, 2)):
        prompt, response = chance.randint(16, 48), chance.randint(16, 112)
        made.append(Example(f"row-{index}", ids[:prompt], [*ids[prompt : prompt + response], VOCABULARY - 2]))
    return made


def measure(size: str, rows: int, repetitions: int) -> list[dict[str, Any]]:
    """Tokens per second of an epoch, prompts included, and the ratio; the floor is of products with weights alone."""
    contenders: dict[str, Contender] = {"ours": partial(ours, size, rows)}
    for suffix, keeps in MEMORY.items():
        contenders |= {name + suffix: partial(peer, size, rows, keeps, name) for name in PACKINGS}
    turns = take_turns(contenders, repetitions)
    least = {"flops": 6 * num_parameters(create_model(size, VOCABULARY, 16))}
    found = []
    for suffix in MEMORY:
        better = min(PACKINGS, key=lambda name, s=suffix: median([turn.seconds for turn in turns[name + s]]))
        compared_turns = {name: turns[name] for name in ("ours", *(packing + suffix for packing in PACKINGS))}
        found.append(
            {
                "name": f"SFT {size}",
                "unit": "tokens/s",
                "peer_name": f"TRL SFT{suffix}, packing {better} demonstrations",
                **compared(compared_turns, better + suffix),
                "least": least,
            }
        )
    return found


def ours(size: str, rows: int) -> Turn:
    """An epoch of ours, after a short one that warms up."""
    _ours(size, demonstrations(min(rows, WARM_UP_ROWS)))
    return _ours(size, demonstrations(rows))


def peer(size: str, rows: int, keeps_memory: bool, packing: str) -> Turn:
    """An epoch of TRL's, after a short one that warms up."""
    from understudy.training.allocator import keep_freed_memory

    if keeps_memory:
        assert keep_freed_memory()
    _peer(size, demonstrations(min(rows, WARM_UP_ROWS)), packing)
    return _peer(size, demonstrations(rows), packing)


def _ours(size: str, examples: list[Example]) -> Turn:
    from understudy.training.sft import train_sft

    policy = create_policy(size, VOCABULARY, PACKED_TOKENS)
    settings = ["sft.epochs=1", f"sft.batch_tokens={BATCH_TOKENS}", "sft.checkpoint_every_steps=100000"]
    config = load_params(ROOT / "params.yaml", settings).sft
    surroundings = Surroundings()
    start = usage()
    train_sft(policy, examples, [], config, 7, surroundings.loop())
    return Turn.between(start, usage(), _tokens(examples))


def _peer(size: str, examples: list[Example], packing: str) -> Turn:
    import trl
    from datasets import Dataset

    rows = {
        "prompt": [as_text(example.prompt) for example in examples],
        "completion": [" " + as_text(example.response[:-1]) for example in examples],
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = {
            "per_device_train_batch_size": BATCH_TOKENS // PACKED_TOKENS,
            "max_length": PACKED_TOKENS,
            "num_train_epochs": 1,
            "learning_rate": 3e-3,
            "packing": True,
            "packing_strategy": PACKINGS[packing],
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
        }
        trainer = trl.SFTTrainer(
            model=create_model(size, VOCABULARY, PACKED_TOKENS),
            args=trl.SFTConfig(output_dir=folder, **settings),
            train_dataset=Dataset.from_dict(rows),
            processing_class=word_tokenizer(VOCABULARY, ends_inside=True),
        )
        start = usage()
        trainer.train()
        end = usage()
        # Equal work was done, or the comparison is none.
        assert trainer._total_train_tokens == _tokens(examples), (trainer._total_train_tokens, _tokens(examples))
        return Turn.between(start, end, _tokens(examples))


def _tokens(examples: list[Example]) -> int:
    return sum(example.num_tokens for example in examples)
