"""Results in files: shards, atomic writes, and processes that share the work."""
