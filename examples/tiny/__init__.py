"""A tiny instruction task from a seeded generator, for tests."""
