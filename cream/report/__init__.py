"""What runs found: data frames, statistics over seeds, figures."""
