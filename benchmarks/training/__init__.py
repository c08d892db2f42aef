"""Packed against padded batches, and our loop against a Hugging Face Trainer."""
