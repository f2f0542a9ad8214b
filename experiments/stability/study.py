"""The runs, through the steps that the pipeline has: ingest, sft, align, evaluate."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from examples.writing import write_jsonl
from experiments.stability import lists, sections
from understudy.config import Params, load_params
from understudy.platform.steps import align, evaluate, ingest, sft

ROOT = Path(__file__).parents[2]
DEFAULT_ROUNDS = load_params(ROOT / "params.yaml").align.num_rounds
# By decoding: the pairs of aligned and SFT that an evaluation compares.
DECODINGS = ("T=1", "tuned", "greedy")
MEASURED = ("length_tokens", "distinct_2", "eos_rate")  # and every judge
FOLLOWED = ("response_tokens", "distinct_2", "entropy", "kl", "held_out_auc", "discriminator_accuracy")


RECIPE = ROOT / "pipelines" / "runs" / "cpu-many.yaml"
_JUDGES = [
    {"name": "validity", "kind": "callable", "target": "examples/ansible/validity.py:judge"},
    {"name": "minilm", "kind": "callable", "target": "experiments/stability/similarity.py:judge"},
    {"name": "chrf", "kind": "callable", "target": "examples/debian/similarity.py:judge"},
]
_SIMILARITY = f"evaluation.judges={json.dumps(_JUDGES)}"
FETCHED, SOURCE = ROOT / "build" / "stability" / "raw", "demonstrations.jsonl"


@dataclass(frozen=True)
class Case:
    """One run: settings over params.yaml, and what writes its demonstrations into a folder."""

    name: str
    overrides: tuple[str, ...]
    seed: int
    demonstrations: Callable[[Path], None]

    @property
    def label(self) -> str:
        """Name for files and tables."""
        return f"{self.name}-{self.seed}"


def _model(hidden: int, context: int) -> str:
    shape = {"vocab_size": 400, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_layers": 2}
    return json.dumps(shape | {"num_heads": 4, "num_kv_heads": 4, "context_tokens": context})


def _lists(num_rows: int, num_lines: Sequence[int], seed: int) -> Callable[[Path], None]:
    return lambda folder: write_jsonl(folder / SOURCE, lists.rows(num_rows, num_lines, seed))


def _ansible(folder: Path) -> None:
    """Those of `make demo`, fetched once; the judge's schema lies beside them."""
    if not (FETCHED / SOURCE).is_file():
        from examples.ansible import extract

        extract.write(FETCHED, FETCHED.parent, extract.COLLECTIONS, extract.MAX_CHARS, extract.LIMIT)
    shutil.copytree(FETCHED, folder, dirs_exist_ok=True)


def _ruled(task: ModuleType) -> tuple[str, ...]:
    """Settings of a generated task, judged by its own rule."""
    return (
        "data.near_duplicate_threshold=null",  # responses to the same two words are alike, and meant to be
        "evaluation.tuning_judge=rule",
        f'evaluation.judges=[{{name: rule, kind: callable, target: "{task.__file__}:judge"}}]',
    )


def rounds_case(divergence: str, seed: int, num_rounds: int = 5 * DEFAULT_ROUNDS, num_rows: int = 500) -> Case:
    """Short lists, and everything of the loop at its default but the number of rounds."""
    settings = (
        f"model.scratch={_model(hidden=64, context=128)}",
        "sft.epochs=25",
        "sft.batch_tokens=512",
        f"align.divergence={divergence}",
        f"align.num_rounds={num_rounds}",
        "align.rollout.max_response_tokens=64",
        "evaluation.max_response_tokens=64",
    )
    return Case(f"rounds-{divergence}", (*_ruled(lists), *settings), seed, _lists(num_rows, range(3, 9), seed))


def default_case(divergence: str, seed: int, num_rounds: int = 5 * DEFAULT_ROUNDS) -> Case:
    """params.yaml itself, model and data, but for the number of rounds; two judges of similarity beside its own."""
    settings = (f"align.divergence={divergence}", f"align.num_rounds={num_rounds}", _SIMILARITY)
    return Case(f"default-{divergence}", settings, seed, _ansible)


def recipe_case(seed: int, num_rounds: int = 5 * DEFAULT_ROUNDS) -> Case:
    """The same by the alignment of cpu-many.yaml: n-grams, 96 prompts a round, four times the rate."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["align"]
    settings = (f"align={json.dumps(recipe)}", f"align.num_rounds={num_rounds}", _SIMILARITY)
    return Case("recipe", settings, seed, _ansible)


def long_case(seed: int, num_rounds: int = 8, num_lines: int = 280, tokens: int = 1024) -> Case:
    """Numbered lists of up to 1,024 tokens in a context of 1,152, which SFT hardly learns."""
    settings = (*_ruled(lists), *_long(num_rounds, tokens), "sft.epochs=12", "sft.batch_tokens=4096")
    evaluation = ("evaluation.temperatures=[0.7]", "evaluation.max_prompts=12")
    return Case("long", (*settings, *evaluation), seed, _lists(132, (num_lines,), seed))


def sections_case(
    seed: int, num_rounds: int = 16, shape: tuple[int, int] = (17, 15), tokens: int = 1024, num_rows: int = 132
) -> Case:
    """Sections of lines, as long, which SFT learns in part."""
    settings = (
        *_ruled(sections),
        *_long(num_rounds, tokens),
        "sft.epochs=17",
        "sft.batch_tokens=2048",
        "evaluation.max_prompts=32",
    )

    def demonstrations(folder: Path) -> None:
        write_jsonl(folder / SOURCE, sections.rows(num_rows, *shape, seed))

    return Case("sections", settings, seed, demonstrations)


def _long(num_rounds: int, tokens: int) -> tuple[str, ...]:
    rollout = {"prompts_per_round": 4, "responses_per_prompt": 2, "max_response_tokens": tokens}
    return (
        f"model.scratch={_model(hidden=64, context=tokens + 128)}",
        f"align.num_rounds={num_rounds}",
        f"align.rollout={json.dumps(rollout)}",
        "align.rollout.temperature=1.0",
        "align.rollout.top_p=1.0",
        "align.discriminator.batch_pairs=6",
        "align.discriminator.warmup_updates_per_round=3",
        "align.held_out_every_rounds=2",
        f"evaluation.max_response_tokens={tokens}",
    )


def run(case: Case, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a case in a folder that is gone afterwards; return its settings and numbers as JSON values."""
    started, cpu_started = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="understudy-stability-") as folder, _surroundings(Path(folder) / "work"):
        raw = Path(folder) / "work" / "raw"  # where judges look for what lies beside the demonstrations
        case.demonstrations(raw)
        source = raw / SOURCE
        params = load_params(ROOT / "params.yaml", (*case.overrides, f"data.source={source}", f"seed={case.seed}"))
        found = _through_the_steps(params, say)
    seconds = {"wall": round(time.monotonic() - started), "cpu": round(time.process_time() - cpu_started)}
    # Paths of this machine are no settings.
    kept = [item.replace(f"{ROOT}/", "") for item in case.overrides]
    say(f"{case.label}: {seconds['cpu']} s of CPU, stopped by {found['stopped_by']}")
    return {"case": case.name, "seed": case.seed, "overrides": kept, "seconds": seconds, **found}


def _through_the_steps(params: Params, say: Callable[[str], None]) -> dict[str, Any]:
    dumped = params.model_dump(mode="json")

    def config(*names: str) -> dict[str, Any]:
        return {"seed": params.seed, "code_sha256": "experiment", **{name: dumped[name] for name in names}}

    dataset = ingest.run(config("data") | {"source_sha256": ""})
    warm = sft.run(config("model", "sft"), dataset)
    say("sft done")
    aligned, discriminator = align.run(config("model", "align"), dataset, warm)
    say("align done")
    report = evaluate.run(config("model", "evaluation"), dataset, {"sft": warm, "aligned": aligned}, discriminator)
    history = [json.loads(line) for line in (Path(aligned.uri) / "history.jsonl").read_text().splitlines()]
    return {
        "rounds": params.align.num_rounds,
        "stopped_by": aligned.stopped_by,
        "splits": dataset.splits,
        "train_seconds": {"sft": warm.train_seconds, "align": aligned.train_seconds},
        "history": [{name: _short(row[name]) for name in ("step", *FOLLOWED) if name in row} for row in history],
        "evaluation": _evaluation(report.metrics, report.comparisons),
    }


def _evaluation(metrics: Mapping[str, Any], comparisons: list[dict[str, Any]]) -> dict[str, Any]:
    """What both policies do on test prompts by decoding, and each judge's paired difference, aligned less SFT."""
    found: dict[str, Any] = {}
    for decoding in DECODINGS:
        rows = {
            policy: {
                name: value
                for name, value in metrics[policy][decoding].items()
                if name in MEASURED or name.startswith("judge_")
            }
            for policy in ("sft", "aligned")
            if decoding in metrics[policy]
        }
        pairs = {
            item["judge"]: item["difference"]
            for item in comparisons
            if item["a"] == {"policy": "aligned", "decoding": decoding}
            and item["b"] == {"policy": "sft", "decoding": decoding}
        }
        found[decoding] = rows | {"differences": pairs}
    return found


def _short(value: float) -> float:
    return float(f"{value:.5g}")


@contextmanager
def _surroundings(workdir: Path) -> Iterator[None]:
    """A working directory of its own, one thread, CPU, no tracking server."""
    mine = {"UNDERSTUDY_WORKDIR": str(workdir), "UNDERSTUDY_DEVICE": "cpu", "UNDERSTUDY_THREADS": "1"}
    names = [name for name in os.environ if name.startswith(("UNDERSTUDY_", "MLFLOW_"))]
    before = {name: os.environ.pop(name) for name in names}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del os.environ[name]
        os.environ.update(before)
