"""Media files -> frozen encoders -> columns of the store, as Ray jobs."""
