"""SFT, preference training and the reward model, in one process or several."""
