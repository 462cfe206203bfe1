"""Pretraining and fine-tuning: the loop, its tasks, checkpoints, log, weights on disk."""
