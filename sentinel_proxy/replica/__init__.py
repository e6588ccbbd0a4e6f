"""One process among several: what it tells the others through a store, and what it takes from them."""
