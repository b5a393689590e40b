"""Raw material: each module turns one kind of original into plain uint8 arrays, or refuses it."""
