"""What a decoder is: its numbers, its positions, its attention; below all providers."""
