"""Evaluation: tasks and metrics."""
