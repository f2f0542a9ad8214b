"""Fallback demonstrations: signature to docstring, from the CPython standard library."""
