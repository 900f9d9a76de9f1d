"""Prepared sets: text as shards of ids on disk."""
