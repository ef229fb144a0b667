"""The paper's Adaptive Orchestrator: keep, redistribute or re-split."""
