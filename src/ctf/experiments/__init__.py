"""The demo, and the figures and tables of the paper."""
