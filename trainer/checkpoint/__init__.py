"""What is kept of a run: checkpoints, and the states that it goes on from."""
