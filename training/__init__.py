"""The trainer: loader, attention, model, loss, checkpoints."""
