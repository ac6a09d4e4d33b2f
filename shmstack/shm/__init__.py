"""Shared memory: the layout, named segments, and which processes use them."""
