"""Which weights become zero: exact counts, N:M, scores, the size of the download."""
