"""PAPER 3, Split Revision: which split is best (eq. 7 and 9), what it costs (eq. 3), and why none is possible."""
