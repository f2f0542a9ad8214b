"""Code digests: what a step imports counts, what it does not import and plumbing do not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from understudy.data.files import file_sha256
from understudy.evaluation import judges
from understudy.platform import code_hash

ROOT = Path(__file__).parents[2]


def modules_of(step: str) -> set[str]:
    return set(code_hash.reachable(ROOT, f"understudy.platform.steps.{step}")[0])


def test_the_report_does_not_retrain_and_training_does() -> None:
    sft = modules_of("sft")
    assert not [name for name in sft if name.startswith("understudy.evaluation")]
    assert {"understudy.training.sft", "understudy.platform.steps.sft", "understudy.records"} <= sft
    assert "understudy.training.adversarial" not in sft
    assert "understudy.training.adversarial" in modules_of("align")


def test_plumbing_does_not_count() -> None:
    plumbing = {f"understudy.platform.{name}" for name in ("context", "events", "tracking", "storage", "local_run")}
    assert not plumbing & modules_of("sft")


def test_the_typed_params_do_not_count() -> None:
    for step in code_hash.STEPS:
        assert not [name for name in modules_of(step) if name.startswith("understudy.config")]


def test_how_rows_come_in_does_not_retrain_but_how_they_are_read_does() -> None:
    coming_in = {"understudy.data.ingest", "understudy.data.dedup", "understudy.platform.datasets"}
    for step in ("sft", "align", "evaluate"):
        assert not coming_in & modules_of(step)
        assert "understudy.data.demonstrations" in modules_of(step)
    assert {"understudy.data.ingest", "understudy.data.dedup"} <= modules_of("ingest")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    steps = tmp_path / "understudy" / "platform" / "steps"
    steps.mkdir(parents=True)
    for folder in (steps, steps.parent, steps.parent.parent):
        (folder / "__init__.py").touch()
    (tmp_path / "understudy" / "maths.py").write_text("def f():\n    import torch\n    return 1\n")
    (tmp_path / "understudy" / "types.py").touch()
    (steps / "sft.py").write_text(
        "from typing import TYPE_CHECKING\nfrom ... import maths\nif TYPE_CHECKING:\n    from understudy import types\n"
    )
    return tmp_path


def test_relative_and_late_imports_are_followed_and_type_checking_ones_are_not(tree: Path) -> None:
    modules, libraries = code_hash.reachable(tree, "understudy.platform.steps.sft")
    assert set(modules) == {"understudy.platform.steps.sft", "understudy.maths"}
    assert libraries == {"torch"}


def test_comments_and_docstrings_do_not_count_but_numbers_do(tree: Path) -> None:
    path = tree / "understudy" / "maths.py"
    copies = [shutil.copy(path, tree / f"copy{number}.py") for number in range(2)]
    copies[0].write_text('"""Words."""\n# why\ndef f():\n    """More."""\n    import torch\n\n    return 1\n')
    copies[1].write_text(path.read_text().replace("return 1", "return 2"))
    same, changed = (code_hash._meaning(copy) for copy in copies)
    assert same == code_hash._meaning(path) != changed


def test_an_unknown_step_is_named() -> None:
    with pytest.raises(ValueError, match="'sftt' is not a step"):
        code_hash.code_sha256("sftt")


def test_a_judges_digest_follows_its_file(tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text("def judge(): return 1")
    before = code_hash.target_sha256(f"{judge}:judge")
    judge.write_text("def judge(): return 2")
    assert before is not None and before != code_hash.target_sha256(f"{judge}:judge")
    assert code_hash.target_sha256(f"{tmp_path / 'absent.py'}:judge") is None
    assert code_hash.target_sha256("") is None
    assert code_hash.target_sha256("understudy.evaluation.judges:load_judge") == file_sha256(Path(judges.__file__))
