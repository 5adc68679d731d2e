"""The parts of ``python -m jaxgpt.plan``."""
