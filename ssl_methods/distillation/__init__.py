"""Two views must agree, without negatives: a teacher or a stop-gradient keeps the features from collapsing."""
