"""A language model, read from its folder: architecture, precision, chat template; and the bases that are made here."""
