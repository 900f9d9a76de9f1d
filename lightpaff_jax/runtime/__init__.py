"""Processes, storage, locks, chips and messages: the machine under a run."""
