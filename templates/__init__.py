"""The built-in templates, as package data: haproxy.cfg.j2 (and, later, the status page)."""
