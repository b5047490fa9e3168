"""The reconcile: from a desired document, whatever state this host is in, to a HAProxy that serves."""
