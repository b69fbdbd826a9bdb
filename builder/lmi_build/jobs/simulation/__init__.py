"""A job without AWS: the same folders, files, script and signals on this machine."""
