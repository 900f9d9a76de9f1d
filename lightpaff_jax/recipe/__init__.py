"""Recipes: trains a teacher and its students by a plan of runs, and reports on them."""
