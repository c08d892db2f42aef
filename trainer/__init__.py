"""Conversations and columns -> packed batches -> projectors and LLM, in two stages."""
