"""The PyTorch twin: the same models as jaxgpt, to read, to run on a laptop and to train in small."""
