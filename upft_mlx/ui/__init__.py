"""The screen: events and facts go in, lines, tables and the live view come out. Only this package imports Rich.

Start at views.py.
"""
