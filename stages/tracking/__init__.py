"""MLflow, a window on the files under metrics/ and reports/."""
