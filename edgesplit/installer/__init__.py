"""Ships to a host that has nothing but Python, together with pip; imports nothing of ours."""
