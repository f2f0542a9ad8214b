"""Experiments behind docs/results.md; each is one command that writes raw numbers and figures."""
