"""Prepared datasets: text as shards of token ids on disk."""
