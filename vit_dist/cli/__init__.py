"""One command, vit-dist: a module a verb, heavy imports inside the functions."""
