"""The room of the layers that cores share; nothing here computes."""
