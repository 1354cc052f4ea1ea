"""Which array library computes, and what the card says."""
