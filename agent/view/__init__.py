"""What people and machines read of the agent: the status document and the tables."""
