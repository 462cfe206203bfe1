"""savimae: saliency-aware VideoMAE pretraining for CPU nodes and Slurm clusters."""

__version__ = "0.1.0"
