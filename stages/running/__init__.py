"""Many stages at a time: on one machine, on a cluster."""
