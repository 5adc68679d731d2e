"""The server of ``python -m torchgpt.serve``: requests like OpenAI's, an engine that takes turns, a page."""
