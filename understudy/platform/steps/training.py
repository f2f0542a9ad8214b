"""What the sft and align steps share: the loop's surroundings, the demonstrations, storing a policy."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.config import section_sha256

if TYPE_CHECKING:
    from understudy.data.demonstrations import Demonstration
    from understudy.models.language_model import LanguageModel
    from understudy.platform.context import StepContext
    from understudy.platform.storage import Stored
    from understudy.records import DatasetRef
    from understudy.training.loop import Loop


def create_loop(context: StepContext, precision: str, lineage: str) -> Loop:
    """Return the surroundings of a loop: device, processes, tracker, checkpoints keyed by lineage."""
    import torch

    from understudy.training.checkpoint import Checkpoints
    from understudy.training.loop import Loop, create_accelerator

    torch.set_num_threads(context.threads)
    checkpoints = Checkpoints(context.checkpoint_dir(lineage))
    accelerator = create_accelerator(precision, context.device)
    return Loop(accelerator, context.tracker, checkpoints, context.should_stop)


def lineage_of(config: Mapping[str, Any], *parents: str) -> str:
    """Digest of everything that the result depends on, so that a retry finds its checkpoints and nothing else does."""
    return section_sha256(dict(config), *parents)[:32]


def load_demonstrations(context: StepContext, dataset: DatasetRef, *splits: str) -> list[list[Demonstration]]:
    """Materialise a dataset version and read some of its splits."""
    from understudy.data.demonstrations import load_split
    from understudy.platform.context import current_run
    from understudy.platform.datasets import materialise

    if run := current_run():
        run.log_dataset(dataset)
    folder = materialise(dataset, context.workdir)
    return [load_split(folder, split) for split in splits]


def store_policy(
    context: StepContext, policy: LanguageModel, history: Sequence[Mapping[str, float]], skipped: Sequence[Any]
) -> Stored:
    """Store a policy's folder with the history of its training and the rows that did not fit.

    Nothing in it depends on the clock, so the same run gives the same digest.
    """
    with scratch_folder(context) as folder:
        policy.save(folder)
        write_jsonl(folder / "history.jsonl", history)
        if skipped:
            write_jsonl(folder / "skipped.jsonl", skipped)
        return context.store.put_folder(folder, "policy")


def write_jsonl(path: Path, rows: Sequence[Any]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")


@contextmanager
def scratch_folder(context: StepContext) -> Iterator[Path]:
    """Return a folder on the working directory's disk that is gone afterwards."""
    parent = context.workdir / "scratch"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{context.step}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
