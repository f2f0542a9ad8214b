"""Understudy: align language models from expert demonstrations alone."""

__version__ = "0.1.0"
