#!/bin/sh
# What pfSense boots, and calls again on every change of WAN: it runs each executable *.sh here with `start`, and never
# rcorder(8). The script is the one beside this; its settings are in ../rc.conf.d/edgeagent.
exec "$(dirname "$0")/edgeagent" "$@"
