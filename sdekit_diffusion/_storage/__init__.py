"""Results in files: shards, atomic writes, and the processes that share them."""
