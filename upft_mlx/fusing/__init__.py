"""The fusing stage: the base model and an adapter go in, fused/ comes out.

Start at fuse.py.
"""
