"""What each training method makes of the consistency found in ranking: its weight C for every pair.

A method maps the consistency of the pairs, one in [0, 1] for each prompt, to the C of the loss for each pair.
"""

METHODS = {
    "srlm": lambda consistency: consistency * 0 + 1.0,  # plain self-rewarding: every pair is trusted
    "cream": lambda consistency: consistency * 0 + consistency.mean(),  # the paper's CREAM: one C for the whole set
}
