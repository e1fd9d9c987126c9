"""Planning: a recipe and a machine go in, tokens, memory, disk and time come out.

Start at plan.py.
"""
