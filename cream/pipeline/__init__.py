"""A run: its parameters, what is checked before it, and how a notebook becomes a stage."""
