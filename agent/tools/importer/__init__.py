"""`agent import`: what people have, as a desired state."""
