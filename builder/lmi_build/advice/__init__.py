"""Which serving system to use, by rules that say why; pure."""
