"""A Kubernetes cluster as the source of a desired state: read, judged, watched. Nothing of it runs on a firewall.

Pure: `objects`, `selector`, `annotations`, `pools`, `fragments`, `base`, `merge`, `memory`, `desired`, `conditions`.
What the controller asks and does: `api`, `informer`, `cluster`, `firewalls`, `reporter`, `finalizers`.
"""
