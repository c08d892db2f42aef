"""What a run would need, estimated before it takes any GPU."""
