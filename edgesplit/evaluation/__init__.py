"""Scripted scenarios on the lab, static and adaptive: the paper's use cases and expected results, measured."""
