"""Training: the training folder, patch sampling, the training loop, replicas and checkpoints."""
