"""Comparing contenders: tuned alike, trained on the same fresh seeds, tested."""
