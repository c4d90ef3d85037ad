"""Decode pictures and clips, in processes of their own."""
