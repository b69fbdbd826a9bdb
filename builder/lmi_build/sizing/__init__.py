"""How much memory a model takes, before a machine is rented: pure arithmetic."""
