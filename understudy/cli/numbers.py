"""Numbers and durations as a person reads them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 0.4s, 12s, 3m05s, 2h10m."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f}s"
    if seconds < 59.5:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def number(value: float | None) -> str:
    """Return a number with three digits that matter, at most three decimals; null (not finite) as a dash."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    decimals = 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    text = f"{value:.{decimals}f}"
    return text if float(text) else "0"
