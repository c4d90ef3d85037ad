"""Weights in and out: Hugging Face's LLaMA, LWM's own streams, and how a run starts from either."""
