"""Results: a run directory goes in, its report, figures and costs come out.

Start at report.py.
"""
