"""GGUF: a file of llama.cpp's goes in, a model folder in mlx-lm's format comes out, converted once.

Start at model.py.
"""
