"""What custom kinds are held to: the fields on record, and the definitions too where a folder of them is at hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from k8s.checks import schemas  # noqa: E402

DEFINITIONS = [
    pytest.param(None, id="on-record"),
    *(pytest.param(folder, id="definitions") for folder in [schemas.crds_folder()] if folder is not None),
]
