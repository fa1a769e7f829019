"""A run's models, met and given away: talking to them in the terminal, and a folder with a model card."""
