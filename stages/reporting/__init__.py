"""Results -> tables, statistics, figures, the page."""
