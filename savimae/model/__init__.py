"""VideoMAE and the classifier on its encoder, in plain PyTorch."""
