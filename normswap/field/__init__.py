"""Proof that two graphs compute the same function in real arithmetic, modulo random primes."""
