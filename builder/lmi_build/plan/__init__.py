"""From a recipe and facts to named stages, before any work."""
