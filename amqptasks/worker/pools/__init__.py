"""Pools: the places where tasks run. One contract (`slot.py`), kept by processes and by threads."""
