"""What could cause what the patient reports: a causal network, exact inference on it, and the stream of a talk."""

from .inference import Evidence, Gain, Posterior, gains, infer, predict
from .network import Network, Node, RedFlag
from .stream import CausalStream, State
from .words import in_words

__all__ = [
    "CausalStream",
    "Evidence",
    "Gain",
    "Network",
    "Node",
    "Posterior",
    "RedFlag",
    "State",
    "gains",
    "in_words",
    "infer",
    "predict",
]
