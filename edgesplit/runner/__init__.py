"""What ships to the edge: one runner per host. Imports nothing of the rest of edgesplit, only itself, relatively."""
