"""PPO with a value model on one shared base: pure losses in `losses`, the trainer in `trainer`."""

from .config import PPOConfig
from .loading import load_ppo_model
from .scoring import from_endpoint, from_functions
from .trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer", "from_endpoint", "from_functions", "load_ppo_model"]
