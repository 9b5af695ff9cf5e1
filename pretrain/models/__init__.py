"""Model families: each turns its config into one ordered list of layer descriptors."""
