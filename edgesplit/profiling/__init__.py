"""The paper's Monitoring & Capacity Profiling: what the hosts and links can do, and how they are doing now."""
