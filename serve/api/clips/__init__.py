"""Features of media: found in memory, in the cache or in stores, or decoded and encoded."""
