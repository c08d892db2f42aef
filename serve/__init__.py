"""Ask a trained checkpoint: chat and evaluation."""
