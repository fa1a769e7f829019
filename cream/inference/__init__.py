"""What models write and how they score it: sampling, log-probs, rankers, a judge."""
