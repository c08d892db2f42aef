"""What a run would take, before any GPU is taken."""
