"""Which videos there are, and decoding them."""
