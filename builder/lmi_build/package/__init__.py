"""Laying out what a build made as a folder that a server can load."""
