"""The hosts, and the only place that knows SSH."""
