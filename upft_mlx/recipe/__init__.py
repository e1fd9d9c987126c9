"""Recipes: a YAML file goes in, a checked Recipe comes out.

Start at schema.py, then load.py.
"""
