"""The embedded demo: a tiny model, its word problems, and the scripts that made them."""
