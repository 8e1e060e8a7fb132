"""One module per modality: the columns it reads, how its towers are embedded, and its views."""
