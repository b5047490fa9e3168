"""Pure: bytes to desired state to configuration to plan. No I/O; imports nothing of ours but `errors`."""
