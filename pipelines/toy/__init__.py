"""A toy world and a small library, for tests and a first try."""
