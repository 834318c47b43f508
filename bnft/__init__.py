"""Fine-tune, measure, publish and talk to Bengali empathetic language models."""

import bnft.config  # noqa: F401  (silences libraries that report on their users, before they are imported)

__version__ = "0.1.0"
