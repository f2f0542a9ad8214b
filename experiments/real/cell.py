"""One cell: an arm on a task with so many demonstrations and one seed, trained and measured."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.real.arms import Arm
from experiments.real.measure import Chooser, Place, measure, sample_decodings
from experiments.real.tasks import Rows, Task, load, without_place
from understudy.config import Params, load_params
from understudy.config.sections import section_sha256
from understudy.data.demonstrations import Demonstration
from understudy.data.withholding import for_alignment, for_warm_start
from understudy.models.discriminator import create_discriminator
from understudy.models.language_model import LanguageModel, TokenBatch
from understudy.models.loading import create_policy, load_policy, with_lora
from understudy.platform.code_hash import code_sha256
from understudy.tracker import ListTracker
from understudy.training.adversarial import align, num_discriminator_outputs, objective_from
from understudy.training.checkpoint import Checkpoints
from understudy.training.examples import Example, encode
from understudy.training.loop import Loop, create_accelerator
from understudy.training.methods import composed
from understudy.training.sft import train_sft
from understudy.training.state import Models

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cell:
    """What names a cell."""

    task: Task
    size: int | None
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """File name without its ending."""
        return f"{self.task.name}-{self.size or 'all'}-{self.arm.name}-{self.seed}"


@dataclass(frozen=True)
class Folders:
    """Where results are kept, and where weights and fetched data are."""

    results: Path
    work: Path


@dataclass(frozen=True)
class Settings:
    """What is laid over the task's params.

    Attributes:
        under: overrides that an arm's own stand over: where the policy comes from.
        over: overrides that stand over every arm's.
        adapters: whether a pretrained policy is trained by adapters; None: it is from scratch.
    """

    under: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    adapters: bool | None = None

    def of(self, arm: Arm) -> tuple[str, ...]:
        """Overrides for an arm, the later over the earlier."""
        rate: tuple[str, ...] = ()
        if self.adapters is not None:
            # An arm's own fits a policy from scratch; adapters take ten times what all weights do.
            rate = (f"align.learning_rate={arm.pretrained_rate * (10 if self.adapters else 1):g}",)
        return (*self.under, *arm.overrides, *rate, *self.over)

    @property
    def told(self) -> list[str]:
        """What cells are kept apart by: the same on every machine."""
        return [without_place(setting) for setting in (*self.under, *self.over)]


class Study:
    """Trains and measures cells; SFT policies are trained once for all arms that start from them.

    Args:
        folders: of results and work.
        settings: of all cells.
        device: to train on.
        sample_only: keep samples to be measured later, elsewhere perhaps: measuring needs neither weights nor device.
    """

    def __init__(
        self,
        folders: Folders,
        settings: Settings | None = None,
        device: str = "cpu",
        sample_only: bool = False,
    ) -> None:
        self.folders, self.settings, self.device = folders, settings or Settings(), device
        self.sample_only = sample_only

    def path(self, cell: Cell) -> Path:
        """Where a cell's JSON is."""
        return self.folders.results / f"{cell.name}.json"

    def samples_path(self, cell: Cell) -> Path:
        """Where the samples of a cell are that is yet to be measured."""
        return self.folders.results / "samples" / f"{cell.name}.json"

    def overrides(self, cell: Cell) -> tuple[str, ...]:
        """Of params.yaml, the later over the earlier."""
        return (*cell.task.overrides, *self.settings.of(cell.arm))

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train, sample, measure and write one cell; one that is there is read, one that is sampled is only measured.

        With `sample_only`, an unmeasured one is returned as it is sampled: its decodings hold texts.
        """
        if self.path(cell).is_file():
            return _read(self.path(cell))
        sampled = self._sampled(cell)
        if self.sample_only:
            return sampled
        made = self._measured(cell, sampled)
        _write(self.path(cell), made)
        return made

    def _sampled(self, cell: Cell) -> dict[str, Any]:
        """All that the policy is needed for, read if it is there; written if nothing else is to come."""
        path = self.samples_path(cell)
        if path.is_file():
            return _read(path)
        started = time.monotonic()
        overrides = self.overrides(cell)
        params = load_params(ROOT / "params.yaml", overrides)
        rows = self._rows(cell, params)
        torch.manual_seed(cell.seed)
        policy, choose, told = self._policy(cell, params, rows)
        policy.model.to(self.device).eval()
        made = {
            "task": cell.task.name,
            "size": cell.size,
            "arm": cell.arm.name,
            "seed": cell.seed,
            "overrides": list(overrides),
            "settings": self.settings.told,
            "made_by": made_by(),
            "num_train": len(rows.train),
            "num_parameters": sum(parameter.numel() for parameter in policy.model.parameters()),
            **told,
            **sample_decodings(policy, rows.validation, rows.test, self._place(cell, params), choose),
        }
        made |= {"train_sha256": _digest(rows.train), "test_sha256": _digest(rows.test)}
        made["sample_seconds"] = round(time.monotonic() - started, 1)
        if self.sample_only:
            _write(path, made)
        return made

    def _measured(self, cell: Cell, sampled: dict[str, Any]) -> dict[str, Any]:
        """The cell, from its samples alone and by the params that they were made with.

        Raises:
            ValueError: they answer other test rows than those at hand.
        """
        started = time.monotonic()
        params = load_params(ROOT / "params.yaml", sampled["overrides"])
        rows = self._rows(cell, params)
        made = dict(sampled)
        sample_seconds = made.pop("sample_seconds")
        if made["test_sha256"] != _digest(rows.test):
            raise ValueError(
                f"{self.samples_path(cell)}: its samples answer other test rows than those at hand: params.yaml or "
                "the demonstrations have changed. Remove it and sample the cell again."
            )
        made["decodings"] = measure(sampled["decodings"], rows.test, self._place(cell, params))
        made["seconds"] = round(sample_seconds + time.monotonic() - started, 1)
        return made

    def _rows(self, cell: Cell, params: Params) -> Rows:
        num_test, splits = params.evaluation.max_prompts, params.data.splits
        return load(cell.task, cell.size, cell.seed, self.folders.work, num_test, splits)

    def _place(self, cell: Cell, params: Params) -> Place:
        encoder = None if cell.task.by_character else self.folders.work / "minilm"
        return Place(params.evaluation, cell.seed, ROOT, cell.task.by_character, encoder)

    def _policy(self, cell: Cell, params: Params, rows: Rows) -> tuple[LanguageModel, Chooser | None, dict[str, Any]]:
        if cell.arm.kind == "sft":
            folder, told = self._sft(cell, params, rows)
            return load_policy(folder), None, told
        start = self._sft(cell, params, rows)[0]
        if cell.arm.kind == "sft_longer":
            return self._longer(cell, params, rows, start)
        return self._aligned(cell, params, rows, start)

    def _sft(self, cell: Cell, params: Params, rows: Rows) -> tuple[Path, dict[str, Any]]:
        """Folder of the SFT policy of these params and rows and its numbers, trained if it is not there."""
        settings = {"model": params.model.model_dump(mode="json"), "sft": params.sft.model_dump(mode="json")}
        # The seed names the rows only as long as their source stays the same, which package lists do not.
        key = section_sha256(settings, str(cell.seed), _digest(rows.train), _digest(rows.validation))[:16]
        folder = self.folders.work / "sft" / f"{cell.task.name}-{cell.size or 'all'}-{cell.seed}-{key}"
        if not (folder / "told.json").is_file():
            texts = (text for row in rows.train for text in (row.prompt, row.response))
            policy = create_policy(params.model, texts, cell.seed)
            shown = for_warm_start(rows.train, params.sft.withheld_fraction)
            with self._loop(params) as loop:
                result = train_sft(policy, *_encoded(policy, rows, shown), params.sft, cell.seed, loop)
            told = {"compute_token_passes": result.compute_token_passes, "num_updates": result.num_steps}
            _publish(policy, told, folder)
        return folder, _read(folder / "told.json")

    def _longer(
        self, cell: Cell, params: Params, rows: Rows, start: Path
    ) -> tuple[LanguageModel, None, dict[str, Any]]:
        """Go on from the SFT policy for the compute that an aligned arm took, or for some epochs.

        On all demonstrations, withheld ones too: it competes with what was aligned on them.
        """
        from experiments.real.arms import ARMS

        amount, sft = None, params.sft.model_copy(update={"keep": cell.arm.keep})
        if cell.arm.compute_of:
            amount = self.run(Cell(cell.task, cell.size, ARMS[cell.arm.compute_of], cell.seed))["compute_token_passes"]
        else:
            sft = sft.model_copy(update={"epochs": cell.arm.epochs})
        policy = self._trainable(start, params, cell.seed)
        with self._loop(params) as loop:
            result = train_sft(policy, *_encoded(policy, rows, rows.train), sft, cell.seed, loop, amount)
        return policy, None, {"compute_token_passes": result.compute_token_passes, "num_updates": result.num_steps}

    def _aligned(
        self, cell: Cell, params: Params, rows: Rows, start: Path
    ) -> tuple[LanguageModel, Chooser | None, dict[str, Any]]:
        policy, reference = self._trainable(start, params, cell.seed), load_policy(start)
        reference.model.requires_grad_(False)
        settings = params.align
        best_of_n = cell.arm.kind == "best_of_n"
        if best_of_n:
            # The same rounds and updates of the discriminator, against a policy that stands still.
            settings = settings.model_copy(update={"learning_rate": 1e-12})
        if cell.arm.kind == "closed_form":
            own = settings.discriminator.model_copy(update={"warmup_rounds": 0, "updates_per_round": 0})
            settings = settings.model_copy(update={"discriminator": own})
            discriminator: Any = ClosedFormReward(reference, self._base(params, rows, cell.seed))
        else:
            torch.manual_seed(cell.seed)
            outputs = num_discriminator_outputs(settings)
            discriminator = create_discriminator(settings.discriminator, outputs, reference, lambda: load_policy(start))
        met = for_alignment(rows.train, settings.demonstrations, params.sft.withheld_fraction)
        train, held_out = _encoded(policy, rows, met)
        with self._loop(params) as loop:
            models = Models(policy, reference, discriminator)
            result = align(models, train, held_out, settings, cell.seed, loop)
            told = {
                "compute_token_passes": result.compute_token_passes,
                "num_updates": settings.num_rounds,
                "held_out_auc": result.held_out_auc,
                "stopped_by": result.stopped_by,
                "healthy_round": result.healthy_round,
                "policy_held_rounds": result.policy_held_rounds,
                "num_skipped": len(result.skipped),
                "last": {key: round(value, 4) for key, value in loop.history[-1].items()} if loop.history else {},
            }
        choose = Chooser(discriminator, objective_from(composed(settings)[0])) if best_of_n else None
        return policy, choose, told

    def _trainable(self, folder: Path, params: Params, seed: int) -> LanguageModel:
        policy = load_policy(folder)
        return policy if params.model.lora is None else with_lora(policy, params.model.lora, seed)

    def _base(self, params: Params, rows: Rows, seed: int) -> LanguageModel:
        texts = (text for row in rows.train for text in (row.prompt, row.response))
        base = create_policy(params.model.model_copy(update={"lora": None}), texts, seed)
        base.model.to(self.device).requires_grad_(False)
        return base

    @contextmanager
    def _loop(self, params: Params) -> Iterator[Loop]:
        self.folders.work.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="cell-", dir=self.folders.work))
        try:
            accelerator = create_accelerator(params.model.precision, self.device)
            yield Loop(accelerator, ListTracker(), Checkpoints(folder, keep=1))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def made_by() -> dict[str, str]:
    """What other numbers may come from with the same overrides: code, by its digest, versions, and the processor."""
    import transformers

    processor = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    )
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"code_sha256": code_sha256("align"), **versions, "processor": processor}


def _publish(policy: LanguageModel, told: dict[str, Any], folder: Path) -> None:
    """Write a policy and its numbers so that others see all of it or nothing; who comes second changes nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        policy.save(aside)
        _write(aside / "told.json", told)
        if not folder.exists():
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class ClosedFormReward(nn.Module):
    """No discriminator: log π_SFT − log π_base of the response so far, in the place of its logit.

    The optimal log-ratio of SFT against the model that it started from; shape (B, T, 1). It has nothing to train, but
    a network in its place needs a parameter.
    """

    def __init__(self, sft: LanguageModel, base: LanguageModel) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self._models = [sft, base]

    @torch.no_grad()
    def forward(self, batch: TokenBatch) -> Tensor:
        """Cumulative log-ratio at each response token."""
        sft, base = self._models
        sft.model.eval()
        base.model.eval()
        return (sft.response_logps(batch) - base.response_logps(batch)).cumsum(dim=1)[..., None]


def _encoded(policy: LanguageModel, rows: Rows, train: Sequence[Demonstration]) -> tuple[list[Example], list[Example]]:
    """Some training rows and all validation rows."""
    return encode(policy, train).examples, encode(policy, rows.validation).examples


def _digest(rows: Sequence[Demonstration]) -> str:
    return section_sha256(*(text for row in rows for text in (row.id, row.prompt, row.response)))


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _write(path: Path, value: dict[str, Any]) -> None:
    from examples.writing import write_text

    write_text(path, json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")
