"""The demo: a data set that is made on the spot, and everything run on it."""
