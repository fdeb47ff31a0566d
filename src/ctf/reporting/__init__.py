"""Tables, plots and pages in one style, for every room that reports."""
