"""Specialists against the generalist on three held-out targets of the demo corpus."""
