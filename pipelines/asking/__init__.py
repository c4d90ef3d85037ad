"""Ask for a question about each chunk of a book, and check what comes back."""
