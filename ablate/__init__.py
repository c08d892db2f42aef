"""Ablations: plan the runs, start the missing ones, and write the paper's tables and figures."""
