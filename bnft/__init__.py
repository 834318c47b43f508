"""Fine-tune, measure, publish and talk to Bengali empathetic language models."""

__version__ = "0.1.0"
