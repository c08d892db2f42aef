"""Maintain a store: export, import, merge, push, pull, clean up, and write a data card."""
