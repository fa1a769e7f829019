"""Rows: questions, data sets, the Hub, and the answers that responses give."""
