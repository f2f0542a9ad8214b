"""What all figures share: inline SVG in the page's colours, text that stays text, and a table of the same data.

Matplotlib draws with one stand-in colour per role; the stand-ins become CSS variables, so that one picture serves
light and dark. No date, no random id: equal data gives equal bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from understudy.evaluation.verdict import LABELS

ROLES = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "expert": "#040404",
    "base": "#050505",
    "sft": "#060606",
    "aligned": "#070707",
    "sft_longer": "#080808",
    "champion": "#090909",
}


@dataclass(frozen=True)
class Plot:
    """One figure: `svg` is trusted markup, everything else is text for the template to escape."""

    key: str
    title: str
    caption: str
    svg: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def policy_label(policy: str) -> str:
    """Return what a policy is called in legends and tables."""
    return "expert" if policy == "expert" else LABELS.get(policy, policy)


def canvas(x_name: str, y_name: str) -> tuple[Any, Any]:
    """Return an empty figure and its axes, named."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.7, 3.3), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(plain(x_name), color=ROLES["muted"])
    axes.set_ylabel(plain(y_name), color=ROLES["muted"])
    axes.tick_params(colors=ROLES["muted"], length=0)
    axes.grid(color=ROLES["line"], linewidth=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure, axes


def legend(figure: Any, entries: Sequence[tuple[str, str, str]]) -> None:
    """Name what is drawn: (label, role, marker) each, above the axes."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=ROLES.get(role, ROLES["muted"]), marker=marker, label=plain(label), linewidth=2)
        for label, role, marker in entries
    ]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=2, frameon=False, labelcolor=ROLES["ink"], handlelength=1.4
    )


def plain(text: str) -> str:
    """Return text that Matplotlib does not read as a formula; names of judges are anyone's."""
    return text.replace("$", r"\$")


def svg(figure: Any, key: str) -> str:
    """Return the figure as markup whose colours are CSS variables; equal figures give equal text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 10}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for role, stand_in in ROLES.items():
        text = text.replace(stand_in, _variable(role))
    # Ids of groups repeat from figure to figure and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1).strip()


def standalone(drawn: str) -> str:
    """Return what `svg` returned with fixed colours, for a file outside the page and its style sheet."""
    fixed = {"ink": "#1a1a1a", "line": "#dddddd", "aligned": "#1f6feb"}
    for role in ROLES:
        drawn = drawn.replace(_variable(role), fixed.get(role, "#666666"))
    return drawn


def _variable(role: str) -> str:
    return f"var(--{role.replace('_', '-')})"
