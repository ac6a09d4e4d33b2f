"""Stacks and the sockets in them: who listens, who connects to whom, in which stack, and how it moves."""
