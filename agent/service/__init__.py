"""The service: when to reconcile, what to publish, and how the parts of this host are put together."""
