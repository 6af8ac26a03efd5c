"""The training loop: the job, patch sampling, fitting, replicas and checkpoints."""
