"""Across machines: pushing by ssh, the gate on the other side, signatures."""
