"""One run of pretraining: data columns, devices, the loop, checkpoints, processes."""
