"""Fetch what untrusted links name."""
