"""What is cut: the chain of blocks, the checkpoint it comes from, and the shards it is cut into."""
