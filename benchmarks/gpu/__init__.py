"""What needs a CUDA card, as one command with a time limit: `python -m benchmarks.gpu`."""
