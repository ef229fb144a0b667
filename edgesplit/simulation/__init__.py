"""Simulated fleets under the planner and the orchestrator that run real ones."""
