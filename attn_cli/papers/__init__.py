"""The papers' tables as data: published numbers, how a cell is obtained, what was measured, and running what is not."""
