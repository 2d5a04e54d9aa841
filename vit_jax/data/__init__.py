"""Examples from disk to the devices: sources, host preprocessing, the pipeline."""
