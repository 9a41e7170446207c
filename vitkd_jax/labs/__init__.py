"""Controlled comparisons: arms and seeds, their runs, and what they show."""
