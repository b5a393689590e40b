"""What is done with a trained model: averaging over paths, decoding, combination."""
