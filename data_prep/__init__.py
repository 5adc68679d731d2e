"""Text to tokens on disk: sources, tokenizers, token shards and the order in which training reads them."""
