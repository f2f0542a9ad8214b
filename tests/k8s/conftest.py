"""The rendered environments, once for all tests."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from k8s.checks.render import Object, environment  # noqa: E402


@pytest.fixture(scope="session")
def rendered() -> dict[str, list[Object]]:
    return {
        name: [item for folder in environment(name).values() for item in folder] for name in ("staging", "production")
    }


@pytest.fixture
def items(rendered: dict[str, list[Object]]) -> list[Object]:
    """A copy of the production objects, free to be broken."""
    return copy.deepcopy(rendered["production"])
