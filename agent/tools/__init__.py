"""What a person runs once in a while (the demo; later doctor, import, install): beside the agent, never in it."""
