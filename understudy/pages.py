"""HTML pages from templates, which escape what they are given and refuse what they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_template(path: Path, **filters: Callable[..., Any]) -> Any:
    """Return a Jinja template; those it includes lie beside it.

    Args:
        path: of the template.
        filters: functions that it may pipe values through, by name.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(path.name)
