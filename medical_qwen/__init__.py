"""What the training, inference and evaluation scripts share: one noun per module."""
