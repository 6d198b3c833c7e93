"""PPO with a value model on one shared base: pure losses in `losses`, the trainer in `trainer`."""
