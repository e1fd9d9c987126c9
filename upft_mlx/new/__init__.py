"""`upft new`: a model and a dataset go in, a recipe file comes out.

Start at new.py.
"""
