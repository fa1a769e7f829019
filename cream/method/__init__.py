"""The method itself: consistency, the loss, and which pairs are trained on (the paper, sections 3 and 4)."""
