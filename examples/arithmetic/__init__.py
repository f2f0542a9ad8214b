"""Sums and splittings: demonstrations of which every answer can be checked."""
