"""The training stage: training rows go in, adapter/ comes out.

Start at train.py, then loss.py.
"""
