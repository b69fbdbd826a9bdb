"""Where models come from: facts before a build, files during it."""
