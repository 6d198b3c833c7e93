"""What could cause what the patient reports: a causal network, exact inference on it, and the stream of a talk."""

from .network import Network, Node, RedFlag

__all__ = ["Network", "Node", "RedFlag"]
