"""The paper's Reconfiguration Broadcast: from one split to the next, on all hosts or on none."""
