"""How raw corpora become examples and packed sequences: sources, filters and the Beam jobs."""
