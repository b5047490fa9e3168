"""A Kubernetes cluster as the source of a desired state: read, judged, watched. Nothing of it runs on a firewall.

Pure: `objects`, `selector`, `annotations`, `pools`, `fragments`, `merge`, `state`, `service_status`. What the
controller asks and does: `api`, `reflector`, `election`, `firewalls`, `reports`.
"""
