"""What a model has learned, measured: needles in books, questions about long videos, held-out loss."""
