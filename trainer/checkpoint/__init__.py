"""What a run keeps: checkpoints, and saved states from which it resumes."""
