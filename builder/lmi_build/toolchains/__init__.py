"""What is installed where a stage would run."""
