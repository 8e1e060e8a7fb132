"""The pipeline: one module per stage; each stage is an importable function, and a `main` that touches files."""
