"""What every room needs to reach other machines."""
