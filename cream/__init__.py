"""CREAM: consistency-regularised self-rewarding language models (arXiv 2410.12735)."""
