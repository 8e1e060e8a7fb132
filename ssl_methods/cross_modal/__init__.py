"""What belongs together in two kinds of data must be told, or found, from each other."""
