"""The desired state: bytes to frozen values, with every mistake and its line. Pure."""
