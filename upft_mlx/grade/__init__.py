"""Grading: an answer and the right one go in, whether they are equal comes out.

Start at correct.py.
"""
