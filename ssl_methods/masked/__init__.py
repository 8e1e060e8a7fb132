"""What is hidden must be told from what is seen."""
