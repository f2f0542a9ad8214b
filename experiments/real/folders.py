"""Where cells lie that pages are made of.

Cells of policies from scratch lie in results/. Those of a pretrained policy have the same file names, and lie in
results-NAME/ beside it, a folder for each model and set of overrides: where gpu.sh puts them. In no table: earlier/, a
first training of what was trained again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from experiments.real.study import Cells, Key, load_cells

RESULTS = Path(__file__).parent / "results"


def kept(results: Path = RESULTS) -> list[Path]:
    """The folder of results and those beside it, by name."""
    return [results, *sorted(path for path in results.parent.glob(f"{results.name}-*") if path.is_dir())]


def load_all(folders: Iterable[Path]) -> Cells:
    """Read the cells of several folders.

    Raises:
        ValueError: two folders have cells of the same task, size and settings, or see `load_cells`.
    """
    found: Cells = {}
    places: dict[Key, Path] = {}
    for folder in folders:
        for key, arms in load_cells(folder).items():
            if key in found:
                raise ValueError(
                    f"{places[key]} and {folder} both have cells of {key.task}, {key.size}, with the same settings. "
                    "Put them into one of the two, or move one elsewhere."
                )
            found[key], places[key] = arms, folder
    return found
