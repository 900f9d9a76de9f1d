"""Runs a plan of training runs and reports on them."""
