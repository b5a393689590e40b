"""Data sets: raw archives → one verified .h5 per source → scenes and batches on the training device."""
